// Package derppeer drives a DERP client by lines of JSON: requests on standard input, events on standard output.
//
// Data packets carry their number and are acknowledged in packets of their own, so that never more than the window of
// them is under way: relays drop what waits too long in a queue.
package derppeer

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"os"
	"sync"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

const (
	window   = 16
	ackEvery = 4
	limit    = 60 * time.Second

	kindData = 'D'
	kindAck  = 'A'
	prefix   = 5

	// Every so manieth packet has the greatest size there is.
	greatEvery = 500
)

// Client is what the versions of the DERP client have in common.
type Client interface {
	Connect(ctx context.Context) error
	Send(to key.NodePublic, packet []byte) error
	Recv() (derp.ReceivedMessage, error)
	SendPong(data [8]byte) error
	Ping(ctx context.Context) error
	NotePreferred(preferred bool)
	ServerPublicKey() key.NodePublic
	Close() error
}

type request struct {
	Op    string `json:"op"`
	Peer  string `json:"peer"`
	Count uint32 `json:"count"`
	Size  int    `json:"size"`
	Hex   string `json:"hex"`
}

// got is what came from one peer.
type got struct {
	count   uint32
	ordered bool
	digest  hash.Hash
	// Closed once want packets are there.
	want uint32
	done chan struct{}
}

type peer struct {
	client Client
	output sync.Mutex

	mu    sync.Mutex
	from  map[key.NodePublic]*got
	acked map[key.NodePublic]uint32
	moved *sync.Cond
}

// Run connects the client of this secret and serves requests until standard input ends.
func Run(secret key.NodePrivate, client Client) error {
	p := &peer{client: client, from: map[key.NodePublic]*got{}, acked: map[key.NodePublic]uint32{}}
	p.moved = sync.NewCond(&p.mu)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := client.Connect(ctx); err != nil {
		return err
	}
	go p.receive()
	p.say(map[string]any{"event": "up", "key": hexKey(secret.Public()), "server": hexKey(client.ServerPublicKey())})
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("request %q: %w", lines.Text(), err)
		}
		if err := p.serve(r); err != nil {
			p.say(map[string]any{"event": "failed", "op": r.Op, "error": err.Error()})
		}
	}
	return lines.Err()
}

func (p *peer) say(event map[string]any) {
	line, err := json.Marshal(event)
	if err != nil {
		panic(err)
	}
	p.output.Lock()
	defer p.output.Unlock()
	fmt.Println(string(line))
}

func (p *peer) serve(r request) error {
	switch r.Op {
	case "exchange":
		to, err := parseKey(r.Peer)
		if err != nil {
			return err
		}
		go p.exchange(to, r.Count, r.Size)
	case "raw":
		to, err := parseKey(r.Peer)
		if err != nil {
			return err
		}
		packet, err := hex.DecodeString(r.Hex)
		if err != nil {
			return err
		}
		return p.client.Send(to, packet)
	case "ping":
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := p.client.Ping(ctx); err != nil {
			return err
		}
		p.say(map[string]any{"event": "pinged"})
	case "prefer":
		p.client.NotePreferred(true)
	default:
		return errors.New("no such request")
	}
	return nil
}

// exchange sends count packets, waits for as many and says what both were.
func (p *peer) exchange(with key.NodePublic, count uint32, size int) {
	begin := time.Now()
	sent := sha256.New()
	for n := uint32(0); n < count; n++ {
		if !p.waitFor(func() bool { return n < p.acked[with]+window }) {
			p.say(map[string]any{"event": "failed", "op": "exchange", "error": fmt.Sprintf("packet %d: no acknowledgement", n)})
			return
		}
		packet := dataPacket(n, size)
		sent.Write(packet)
		if err := p.client.Send(with, packet); err != nil {
			p.say(map[string]any{"event": "failed", "op": "exchange", "error": err.Error()})
			return
		}
	}
	complete := p.waitFor(func() bool { g := p.from[with]; return g != nil && g.count >= count && p.acked[with] >= count })
	p.mu.Lock()
	event := map[string]any{
		"event": "exchanged", "peer": hexKey(with), "complete": complete, "sent": hex.EncodeToString(sent.Sum(nil)),
		"acked": p.acked[with], "ms": time.Since(begin).Milliseconds(),
	}
	if g := p.from[with]; g != nil {
		event["count"], event["ordered"], event["received"] = g.count, g.ordered, hex.EncodeToString(g.digest.Sum(nil))
	}
	p.mu.Unlock()
	p.say(event)
}

// waitFor waits until it holds; it is asked with the lock held.
func (p *peer) waitFor(holds func() bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	end := time.AfterFunc(limit, p.moved.Broadcast)
	defer end.Stop()
	begin := time.Now()
	for !holds() {
		if time.Since(begin) >= limit {
			return false
		}
		p.moved.Wait()
	}
	return true
}

func (p *peer) receive() {
	for {
		message, err := p.client.Recv()
		if err != nil {
			p.say(map[string]any{"event": "broken", "error": err.Error()})
			return
		}
		switch m := message.(type) {
		case derp.ReceivedPacket:
			p.take(m.Source, m.Data)
		case derp.PeerGoneMessage:
			p.say(map[string]any{"event": "gone", "peer": hexKey(m.Peer), "reason": int(m.Reason)})
		case derp.PingMessage:
			// The answer must not wait for a relay that waits for us to read.
			go p.client.SendPong(m)
			p.say(map[string]any{"event": "ping"})
		case derp.KeepAliveMessage:
			p.say(map[string]any{"event": "keepalive"})
		case derp.HealthMessage:
			p.say(map[string]any{"event": "health", "text": m.Problem})
		}
	}
}

func (p *peer) take(source key.NodePublic, data []byte) {
	if len(data) < prefix || (data[0] != kindData && data[0] != kindAck) {
		p.say(map[string]any{"event": "packet", "peer": hexKey(source), "hex": hex.EncodeToString(data)})
		return
	}
	number := binary.BigEndian.Uint32(data[1:])
	p.mu.Lock()
	if data[0] == kindAck {
		p.acked[source] = max(p.acked[source], number)
		p.moved.Broadcast()
		p.mu.Unlock()
		return
	}
	g := p.from[source]
	if g == nil {
		g = &got{ordered: true, digest: sha256.New()}
		p.from[source] = g
	}
	g.ordered = g.ordered && number == g.count
	g.count++
	g.digest.Write(data)
	count := g.count
	p.moved.Broadcast()
	p.mu.Unlock()
	if count%ackEvery == 0 {
		go p.acknowledge(source, count)
	}
}

func (p *peer) acknowledge(to key.NodePublic, count uint32) {
	packet := binary.BigEndian.AppendUint32([]byte{kindAck}, count)
	if err := p.client.Send(to, packet); err != nil {
		p.say(map[string]any{"event": "failed", "op": "acknowledge", "error": err.Error()})
	}
}

// dataPacket is packet n: up to size bytes that differ from packet to packet.
func dataPacket(n uint32, size int) []byte {
	length := prefix + int(n)*7919%max(1, size-prefix+1)
	if n%greatEvery == greatEvery-1 {
		length = derp.MaxPacketSize
	}
	packet := make([]byte, length)
	packet[0] = kindData
	binary.BigEndian.PutUint32(packet[1:], n)
	state := uint64(n)*0x9e3779b97f4a7c15 | 1
	for i := prefix; i < length; i++ {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		packet[i] = byte(state)
	}
	return packet
}

func hexKey(k key.NodePublic) string {
	raw := k.Raw32()
	return hex.EncodeToString(raw[:])
}

func parseKey(text string) (key.NodePublic, error) {
	var k key.NodePublic
	err := k.UnmarshalText([]byte("nodekey:" + text))
	return k, err
}

// Secret is the secret key of this hexadecimal text, a new one without text.
func Secret(text string) (key.NodePrivate, error) {
	if text == "" {
		return key.NewNode(), nil
	}
	var k key.NodePrivate
	err := k.UnmarshalText([]byte("privkey:" + text))
	return k, err
}
