// Command netcheck reads a relay map from standard input and prints the report of upstream's netcheck as JSON.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"time"

	"tailscale.com/net/netcheck"
	"tailscale.com/net/netmon"
	"tailscale.com/net/netns"
	"tailscale.com/tailcfg"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	netns.SetEnabled(false)
	var relays tailcfg.DERPMap
	if err := json.NewDecoder(os.Stdin).Decode(&relays); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client := &netcheck.Client{NetMon: netmon.NewStatic(), Logf: log.Printf, SkipExternalNetwork: true}
	if err := client.Standalone(ctx, ":0"); err != nil {
		return err
	}
	report, err := client.GetReport(ctx, &relays, nil)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(report)
}
