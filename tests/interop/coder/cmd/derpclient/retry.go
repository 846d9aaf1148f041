package main

import (
	"context"
	"time"

	"tailscale.com/derp/derphttp"
)

// retrying connects once more when the first attempt ended with the wish to use a WebSocket, as nodes do.
type retrying struct{ *derphttp.Client }

// Connect tries twice at most.
func (r retrying) Connect(ctx context.Context) error {
	forced := make(chan struct{}, 1)
	r.SetForcedWebsocketCallback(func(int, string) { forced <- struct{}{} })
	err := r.Client.Connect(ctx)
	if err == nil {
		return nil
	}
	// The wish is told beside the error, in no order.
	select {
	case <-forced:
		return r.Client.Connect(ctx)
	case <-time.After(time.Second):
		return err
	}
}
