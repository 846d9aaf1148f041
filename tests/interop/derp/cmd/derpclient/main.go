// Command derpclient is the DERP client of upstream, driven by lines of JSON.
package main

import (
	"errors"
	"flag"
	"log"

	"tailnet.example/interop/derppeer"
	"tailscale.com/derp/derphttp"
	"tailscale.com/envknob"
	"tailscale.com/net/netmon"
	"tailscale.com/net/netns"
)

func main() {
	url := flag.String("url", "", "the relay, with its path")
	secret := flag.String("key", "", "secret node key, 64 hexadecimal digits; a new one without")
	websocket := flag.Bool("websocket", false, "connect by WebSocket")
	flag.Parse()
	if err := run(*url, *secret, *websocket); err != nil {
		log.Fatal(err)
	}
}

func run(url, secret string, websocket bool) error {
	netns.SetEnabled(false)
	if websocket {
		// Heard only by a build with the tag ts_debug_websockets.
		envknob.Setenv("TS_DEBUG_DERP_WS_CLIENT", "true")
	}
	key, err := derppeer.Secret(secret)
	if err != nil {
		return err
	}
	client, err := derphttp.NewClient(key, url, log.Printf, netmon.NewStatic())
	if err != nil {
		return err
	}
	client.SetCanAckPings(true)
	return errors.Join(derppeer.Run(key, client), client.Close())
}
