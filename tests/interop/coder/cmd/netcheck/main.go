// Command netcheck reads a relay map from standard input and prints as JSON what `coder netcheck` finds about it.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"

	"tailscale.com/tailcfg"

	"github.com/coder/coder/v2/coderd/healthcheck/derphealth"
)

func main() {
	var relays tailcfg.DERPMap
	if err := json.NewDecoder(os.Stdin).Decode(&relays); err != nil {
		log.Fatal(err)
	}
	var report derphealth.Report
	// Without a deadline of ours each node has ten seconds.
	report.Run(context.Background(), &derphealth.ReportOptions{DERPMap: &relays})
	if err := json.NewEncoder(os.Stdout).Encode(&report); err != nil {
		log.Print(err)
	}
}
