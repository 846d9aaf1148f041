// Command derpclient is the DERP client of Coder's nodes, driven by lines of JSON.
package main

import (
	"errors"
	"flag"
	"log"

	"tailnet.example/interop/derppeer"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netns"
)

func main() {
	url := flag.String("url", "", "the relay, with its path")
	secret := flag.String("key", "", "secret node key, 64 hexadecimal digits; a new one without")
	websocket := flag.Bool("websocket", false, "connect by WebSocket from the start")
	flag.Parse()
	if err := run(*url, *secret, *websocket); err != nil {
		log.Fatal(err)
	}
}

func run(url, secret string, websocket bool) error {
	netns.SetEnabled(false)
	key, err := derppeer.Secret(secret)
	if err != nil {
		return err
	}
	client, err := derphttp.NewClient(key, url, log.Printf)
	if err != nil {
		return err
	}
	client.ForceWebsockets = websocket
	client.SetCanAckPings(true)
	return errors.Join(derppeer.Run(key, retrying{client}), client.Close())
}
