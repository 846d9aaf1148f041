// Command node is a node of the overlay on Coder's tailnet package, driven by lines of JSON: requests on standard input,
// events on standard output, logs on standard error.
package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/netip"
	"os"
	"sync"

	"cdr.dev/slog"
	"cdr.dev/slog/sloggers/sloghuman"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"tailscale.com/tailcfg"

	"github.com/coder/coder/v2/tailnet"
	tailnetproto "github.com/coder/coder/v2/tailnet/proto"
)

type options struct {
	id          uuid.UUID
	relays      string
	blockDirect bool
	verbose     bool
}

func main() {
	var o options
	flag.TextVar(&o.id, "id", uuid.Nil, "own peer id; a new one without")
	flag.StringVar(&o.relays, "relays", "", "relay map as JSON")
	flag.BoolVar(&o.blockDirect, "block-direct", false, "announce no endpoints")
	flag.BoolVar(&o.verbose, "v", false, "log what the node does")
	flag.Parse()
	if err := run(o); err != nil {
		log.Fatal(err)
	}
}

// request is one line of input; each operation uses its part.
type request struct {
	Op   string     `json:"op"`
	Tag  string     `json:"tag"`
	ID   uuid.UUID  `json:"id"`
	Hex  string     `json:"hex"`
	To   string     `json:"to"`
	Port uint16     `json:"port"`
	Mode string     `json:"mode"`
	Size int64      `json:"size"`
	On   bool       `json:"on"`
	IP   netip.Addr `json:"ip"`
	// Milliseconds.
	Limit int64 `json:"limit"`
}

type node struct {
	conn   *tailnet.Conn
	inside insides
	output sync.Mutex

	mu sync.Mutex
	// Connections that wait to be told to go on, by tag or port.
	held map[string]chan struct{}
}

func run(o options) error {
	if o.id == uuid.Nil {
		o.id = uuid.New()
	}
	var relays tailcfg.DERPMap
	if o.relays != "" {
		if err := json.Unmarshal([]byte(o.relays), &relays); err != nil {
			return fmt.Errorf("relay map: %w", err)
		}
	}
	logger := slog.Make()
	if o.verbose {
		logger = slog.Make(sloghuman.Sink(os.Stderr)).Leveled(slog.LevelDebug)
	}
	address := tailnet.TailscaleServicePrefix.PrefixFromUUID(o.id)
	conn, err := tailnet.NewConn(&tailnet.Options{
		ID: o.id, Addresses: []netip.Prefix{address}, DERPMap: &relays, BlockEndpoints: o.blockDirect, Logger: logger, ForceNetworkUp: true,
	})
	if err != nil {
		return err
	}
	n := &node{conn: conn, held: map[string]chan struct{}{}}
	if n.inside, err = insidesOf(conn); err != nil {
		return err
	}
	n.say(event{"event": "ready", "address": address.Addr().String()})
	conn.SetNodeCallback(n.announce)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("request %q: %w", lines.Text(), err)
		}
		if err := n.serve(r); err != nil {
			n.say(event{"event": "failed", "op": r.Op, "tag": r.Tag, "error": err.Error()})
		}
	}
	return errors.Join(lines.Err(), conn.Close())
}

type event map[string]any

func (n *node) say(e event) {
	line, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	n.output.Lock()
	defer n.output.Unlock()
	fmt.Println(string(line))
}

// announce prints the own node as peers are to know it.
func (n *node) announce(own *tailnet.Node) {
	message, err := tailnet.NodeToProto(own)
	if err != nil {
		n.say(event{"event": "failed", "op": "announce", "error": err.Error()})
		return
	}
	bytes, err := proto.Marshal(message)
	if err != nil {
		n.say(event{"event": "failed", "op": "announce", "error": err.Error()})
		return
	}
	n.say(event{"event": "node", "hex": hex.EncodeToString(bytes), "home": own.PreferredDERP, "endpoints": own.Endpoints})
}

func (n *node) serve(r request) error {
	switch r.Op {
	case "peer":
		return n.peer(r)
	case "listen":
		return n.listen(r)
	case "dial":
		to, err := netip.ParseAddrPort(r.To)
		if err != nil {
			return err
		}
		go n.dial(r, to)
	case "release":
		n.release(r.Tag)
	case "udp_listen":
		n.inside.echoUDP()
		n.say(event{"event": "listening", "mode": "udp"})
	case "udp":
		to, err := netip.ParseAddrPort(r.To)
		if err != nil {
			return err
		}
		go n.udp(r, to)
	case "ping":
		go n.ping(r)
	case "status":
		n.status()
	case "block":
		n.conn.SetBlockEndpoints(r.On)
	default:
		return errors.New("no such request")
	}
	return nil
}

// peer tells of another node.
func (n *node) peer(r request) error {
	bytes, err := hex.DecodeString(r.Hex)
	if err != nil {
		return err
	}
	update := &tailnetproto.CoordinateResponse_PeerUpdate{
		Id: r.ID[:], Kind: tailnetproto.CoordinateResponse_PeerUpdate_NODE, Node: &tailnetproto.Node{},
	}
	if err := proto.Unmarshal(bytes, update.Node); err != nil {
		return err
	}
	if err := n.conn.UpdatePeers([]*tailnetproto.CoordinateResponse_PeerUpdate{update}); err != nil {
		return err
	}
	// What an agent would answer with "ready for handshake".
	n.say(event{"event": "told", "id": r.ID})
	return nil
}

// status prints how each peer is reached.
func (n *node) status() {
	peers := []event{}
	for key, p := range n.conn.Status().Peer {
		peers = append(peers, event{
			"key": key.UntypedHexString(), "direct": p.CurAddr, "relay": p.Relay, "handshake": p.LastHandshake,
			"received": p.RxBytes, "sent": p.TxBytes, "active": p.Active,
		})
	}
	n.say(event{"event": "status", "peers": peers})
}
