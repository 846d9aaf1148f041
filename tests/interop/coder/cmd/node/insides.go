package main

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"time"
	"unsafe"

	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"
	"tailscale.com/types/nettype"
	"tailscale.com/wgengine"
	"tailscale.com/wgengine/netstack"

	"github.com/coder/coder/v2/tailnet"
)

// insides are parts of a node that its package keeps to itself: the engine sends pings of every kind, the network stack
// takes UDP. The version is pinned, and a missing part is an error at start.
type insides struct {
	engine wgengine.Engine
	stack  *netstack.Impl
}

func insidesOf(conn *tailnet.Conn) (insides, error) {
	var in insides
	if err := part(conn, "wireguardEngine", &in.engine); err != nil {
		return in, err
	}
	return in, part(conn, "netStack", &in.stack)
}

func part[T any](conn *tailnet.Conn, name string, to *T) error {
	field := reflect.ValueOf(conn).Elem().FieldByName(name)
	if !field.IsValid() || field.Type() != reflect.TypeFor[T]() {
		return fmt.Errorf("this version of the package has no part %s of the expected type", name)
	}
	*to = *(*T)(unsafe.Pointer(field.UnsafeAddr()))
	return nil
}

// echoUDP sends every datagram to any port back.
func (in insides) echoUDP() {
	in.stack.GetUDPHandlerForFlow = func(_, _ netip.AddrPort) (func(nettype.ConnPacketConn), bool) {
		return func(c nettype.ConnPacketConn) {
			defer c.Close()
			buffer := make([]byte, 64<<10)
			for {
				if err := c.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
					return
				}
				n, err := c.Read(buffer)
				if err != nil {
					return
				}
				if _, err := c.Write(buffer[:n]); err != nil {
					return
				}
			}
		}, true
	}
}

func (in insides) ping(ctx context.Context, ip netip.Addr, kind tailcfg.PingType) (*ipnstate.PingResult, error) {
	results := make(chan *ipnstate.PingResult, 1)
	go in.engine.Ping(ip, kind, func(r *ipnstate.PingResult) { results <- r })
	select {
	case r := <-results:
		if r.Err != "" {
			return nil, fmt.Errorf("%s", r.Err)
		}
		return r, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
