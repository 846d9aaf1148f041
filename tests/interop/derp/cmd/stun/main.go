// Command stun is a STUN server, or asks one for the own address. It prints one line of JSON.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"tailscale.com/net/stun"
	"tailscale.com/net/stunserver"
)

func main() {
	serve := flag.String("serve", "", "serve at this address until standard input ends")
	ask := flag.String("ask", "", "ask the server at this address")
	flag.Parse()
	run := server
	address := *serve
	if *ask != "" {
		run, address = client, *ask
	}
	if err := run(address); err != nil {
		log.Fatal(err)
	}
}

func say(event map[string]string) error {
	return json.NewEncoder(os.Stdout).Encode(event)
}

func server(address string) error {
	ctx, cancel := context.WithCancel(context.Background())
	s := stunserver.New(ctx)
	if err := s.Listen(address); err != nil {
		cancel()
		return err
	}
	if err := say(map[string]string{"event": "listening", "address": s.LocalAddr().String()}); err != nil {
		cancel()
		return err
	}
	go func() {
		defer cancel()
		var buffer [1]byte
		for {
			if _, err := os.Stdin.Read(buffer[:]); err != nil {
				return
			}
		}
	}()
	return s.Serve()
}

func client(address string) error {
	conn, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	id := stun.NewTxID()
	if _, err := conn.Write(stun.Request(id)); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	answer := make([]byte, 1500)
	n, err := conn.Read(answer)
	if err != nil {
		return err
	}
	if !stun.Is(answer[:n]) {
		return fmt.Errorf("the answer is not STUN: %x", answer[:n])
	}
	got, mapped, err := stun.ParseResponse(answer[:n])
	if err != nil {
		return err
	}
	if !bytes.Equal(got[:], id[:]) {
		return errors.New("the answer is to another request")
	}
	return say(map[string]string{"event": "mapped", "local": conn.LocalAddr().String(), "mapped": mapped.String(), "hex": fmt.Sprintf("%x", answer[:n])})
}
