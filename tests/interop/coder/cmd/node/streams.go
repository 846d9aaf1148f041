package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"tailscale.com/tailcfg"
)

// The parts of a TCP connection, by mode. What the dialling side does is the answer to what the listening side does:
//
//	echo    the dialler sends size bytes, ends its direction and gets them back
//	sink    the dialler sends size bytes, ends its direction and gets one line: how many came, and their SHA-256
//	source  the dialler sends one line with a size and gets so many bytes
//	hold    the listener reads nothing until it is released, then it is a sink
//	reset   the listener closes with unread bytes, which resets the connection
//	idle    the dialler sends one byte each time it is released, and gets it back, until the connection breaks
//	turn    the listener sends size bytes and ends its direction first; then the dialler sends as many, which the listener counts
//
// Two more are the dialler's alone, against a listener that sends:
//
//	late    as source, but the dialler reads nothing until it is released
//	abort   the dialler reads one byte and closes with unread bytes, which resets the connection
//
// And one against an echo: flood sends until it is released.

const defaultLimit = 2 * time.Minute

func (r request) limit() time.Duration {
	if r.Limit > 0 {
		return time.Duration(r.Limit) * time.Millisecond
	}
	return defaultLimit
}

// closer ends one direction.
type closer interface{ CloseWrite() error }

func endOutput(c net.Conn) error {
	half, ok := c.(closer)
	if !ok {
		return errors.New("the connection cannot be closed in one direction")
	}
	return half.CloseWrite()
}

// gate opens once for each release of the name.
func (n *node) gate(name string) chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	gate, ok := n.held[name]
	if !ok {
		gate = make(chan struct{}, 1024)
		n.held[name] = gate
	}
	return gate
}

// hold waits until the name is released.
func (n *node) hold(name string) { <-n.gate(name) }

func (n *node) release(name string) { n.gate(name) <- struct{}{} }

// until reads until the gate opens.
type until struct {
	io.Reader
	end <-chan struct{}
}

func (u *until) Read(to []byte) (int, error) {
	select {
	case <-u.end:
		return 0, io.EOF
	default:
		return u.Reader.Read(to)
	}
}

func (n *node) listen(r request) error {
	listener, err := n.conn.Listen("tcp", fmt.Sprintf(":%d", r.Port))
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go n.served(r, c)
		}
	}()
	n.say(event{"event": "listening", "port": r.Port, "mode": r.Mode})
	return nil
}

// served runs the listening side of one connection and says what passed.
func (n *node) served(r request, c net.Conn) {
	defer c.Close()
	count, digest, err := n.listenSide(r, c)
	e := event{"event": "served", "port": r.Port, "mode": r.Mode, "size": count, "sha256": digest}
	if err != nil {
		e["error"] = err.Error()
	}
	n.say(e)
}

func (n *node) listenSide(r request, c net.Conn) (int64, string, error) {
	switch r.Mode {
	case "echo", "idle":
		return hashed(c, c, endOutput)
	case "hold":
		n.hold(fmt.Sprint(r.Port))
		return sink(c)
	case "sink":
		return sink(c)
	case "source":
		reader := bufio.NewReader(c)
		line, err := reader.ReadString('\n')
		if err != nil {
			return 0, "", err
		}
		size, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if err != nil {
			return 0, "", err
		}
		return hashed(c, noise(size), endOutput)
	case "reset":
		_, err := io.ReadFull(c, make([]byte, 1))
		return 1, "", err
	case "turn":
		if _, digest, err := hashed(c, noise(r.Size), endOutput); err != nil {
			return 0, digest, err
		}
		return hashed(io.Discard, c, nil)
	}
	return 0, "", fmt.Errorf("no such mode: %q", r.Mode)
}

func sink(c net.Conn) (int64, string, error) {
	count, digest, err := hashed(io.Discard, c, nil)
	if err != nil {
		return count, digest, err
	}
	_, err = fmt.Fprintf(c, "%d %s\n", count, digest)
	return count, digest, err
}

// hashed copies all of it and gives its size and SHA-256; end then closes the direction.
func hashed(to io.Writer, from io.Reader, end func(net.Conn) error) (int64, string, error) {
	sum := sha256.New()
	buffer := make([]byte, 64<<10)
	count, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{io.TeeReader(from, sum)}, buffer)
	if err == nil && end != nil {
		if c, ok := to.(net.Conn); ok {
			err = end(c)
		}
	}
	return count, text(sum), err
}

func text(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// noise is size bytes that neither repeat nor compress.
func noise(size int64) io.Reader {
	var seed [32]byte
	copy(seed[:], strconv.FormatInt(time.Now().UnixNano(), 10))
	return io.LimitReader(rand.NewChaCha8(seed), size)
}

// dial runs the dialling side of one connection and says how it ended.
func (n *node) dial(r request, to netip.AddrPort) {
	begin := time.Now()
	e := event{"event": "done", "tag": r.Tag, "mode": r.Mode}
	ctx, cancel := context.WithTimeout(context.Background(), r.limit())
	defer cancel()
	err := func() error {
		c, err := n.conn.DialContextTCP(ctx, to)
		if err != nil {
			return fmt.Errorf("dial: %w", err)
		}
		defer c.Close()
		e["connected_ms"] = time.Since(begin).Milliseconds()
		return n.dialSide(r, c, e)
	}()
	e["ms"] = time.Since(begin).Milliseconds()
	if err != nil {
		e["error"] = err.Error()
	}
	n.say(e)
}

func (n *node) dialSide(r request, c net.Conn, e event) error {
	switch r.Mode {
	case "echo", "sink", "flood":
		type written struct {
			digest string
			err    error
		}
		done := make(chan written, 1)
		go func() {
			from := noise(r.Size)
			if r.Mode == "flood" {
				from = &until{Reader: noise(math.MaxInt64), end: n.gate(r.Tag)}
			}
			_, digest, err := hashed(c, from, endOutput)
			done <- written{digest, err}
		}()
		if r.Mode == "echo" || r.Mode == "flood" {
			count, digest, err := hashed(io.Discard, c, nil)
			w := <-done
			e["size"], e["received"], e["sent"] = count, digest, w.digest
			return errors.Join(err, w.err)
		}
		answer, err := io.ReadAll(c)
		w := <-done
		e["sent"], e["answer"] = w.digest, strings.TrimSpace(string(answer))
		return errors.Join(err, w.err)
	case "late":
		if _, err := fmt.Fprintf(c, "%d\n", r.Size); err != nil {
			return err
		}
		n.hold(r.Tag)
		count, digest, err := hashed(io.Discard, c, nil)
		e["size"], e["received"] = count, digest
		return err
	case "turn":
		count, digest, err := hashed(io.Discard, c, nil)
		e["size"], e["received"] = count, digest
		if err != nil {
			return err
		}
		_, digest, err = hashed(c, noise(r.Size), endOutput)
		e["sent"] = digest
		return err
	case "abort":
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	case "idle":
		return n.idle(r, c)
	}
	return fmt.Errorf("no such mode: %q", r.Mode)
}

// idle exchanges a byte whenever it is released, until the connection ends.
func (n *node) idle(r request, c net.Conn) error {
	ended := make(chan error, 1)
	go func() {
		buffer := make([]byte, 1)
		for {
			if _, err := io.ReadFull(c, buffer); err != nil {
				ended <- err
				return
			}
		}
	}()
	go func() {
		for {
			n.hold(r.Tag)
			if _, err := c.Write([]byte{'.'}); err != nil {
				return
			}
		}
	}()
	return <-ended
}

// udp sends size datagrams one after the other and counts the answers that are equal.
func (n *node) udp(r request, to netip.AddrPort) {
	e := event{"event": "done", "tag": r.Tag, "mode": "udp"}
	ctx, cancel := context.WithTimeout(context.Background(), r.limit())
	defer cancel()
	equal, err := n.echoes(ctx, r, to)
	e["size"] = equal
	if err != nil {
		e["error"] = err.Error()
	}
	n.say(e)
}

func (n *node) echoes(ctx context.Context, r request, to netip.AddrPort) (equal int64, err error) {
	c, err := n.conn.DialContextUDP(ctx, to)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	answer := make([]byte, 64<<10)
	for i := range r.Size {
		sent := []byte(fmt.Sprintf("datagram %d %s", i, strings.Repeat("x", int(i%1000))))
		// A datagram may be lost; three tries are enough where nothing drops them on purpose.
		for range 3 {
			if _, err := c.Write(sent); err != nil {
				return equal, err
			}
			if err := c.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
				return equal, err
			}
			if count, err := c.Read(answer); err == nil && string(answer[:count]) == string(sent) {
				equal++
				break
			}
		}
	}
	return equal, nil
}

// ping asks a peer: mode is disco, TSMP or ICMP.
func (n *node) ping(r request) {
	e := event{"event": "pong", "tag": r.Tag, "mode": r.Mode}
	ctx, cancel := context.WithTimeout(context.Background(), r.limit())
	defer cancel()
	result, err := n.inside.ping(ctx, r.IP, tailcfg.PingType(r.Mode))
	if err != nil {
		e["error"] = err.Error()
	} else {
		e["ms"], e["endpoint"], e["region"] = result.LatencySeconds*1000, result.Endpoint, result.DERPRegionID
	}
	n.say(e)
}
