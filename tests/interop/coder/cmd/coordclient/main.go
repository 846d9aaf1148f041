// Command coordclient speaks the coordination API of a server with Coder's own client code, driven by lines of JSON:
// requests on standard input, events on standard output. It has one connection at a time.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"sync"
	"time"

	"cdr.dev/slog"
	"google.golang.org/protobuf/proto"
	"storj.io/drpc"
	"storj.io/drpc/drpcerr"

	"github.com/coder/coder/v2/codersdk"
	"github.com/coder/coder/v2/tailnet"
	tailnetproto "github.com/coder/coder/v2/tailnet/proto"
	"github.com/coder/websocket"
)

const limit = 30 * time.Second

func main() {
	token := flag.String("token", "", "session token, or the agent's token")
	flag.Parse()
	c := &client{token: *token}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			log.Fatalf("request %q: %v", lines.Text(), err)
		}
		if err := c.serve(r); err != nil {
			c.say(event{"event": "failed", "op": r.Op, "error": err.Error()})
		}
	}
	if err := lines.Err(); err != nil {
		log.Fatal(err)
	}
}

type event map[string]any

type request struct {
	Op string `json:"op"`
	// Of a dial, with its query.
	URL string `json:"url"`
	// Of an unknown call.
	Path string `json:"path"`
}

type client struct {
	token  string
	output sync.Mutex
	rpc    tailnetproto.DRPCTailnetClient
}

func (c *client) say(e event) {
	line, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	c.output.Lock()
	defer c.output.Unlock()
	fmt.Println(string(line))
}

func (c *client) serve(r request) error {
	if r.Op != "dial" && c.rpc == nil {
		return errors.New("not connected")
	}
	switch r.Op {
	case "dial":
		return c.dial(r.URL)
	case "refresh":
		return c.refresh()
	case "unknown":
		return c.unknown(r.Path)
	case "maps":
		go c.maps(c.rpc)
		return nil
	case "close":
		return c.rpc.DRPCConn().Close()
	}
	return errors.New("no such request")
}

// dial connects, or says how the server refused.
func (c *client) dial(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	header := http.Header{codersdk.SessionTokenHeader: {c.token}}
	//nolint:bodyclose // The library closes it.
	conn, response, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPHeader: header, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		refusal := codersdk.ReadBodyAsError(response)
		var told *codersdk.Error
		if !errors.As(refusal, &told) {
			return fmt.Errorf("%w: %w", err, refusal)
		}
		c.say(event{"event": "refused", "status": told.StatusCode(), "message": told.Message, "validations": told.Validations})
		return nil
	}
	c.rpc, err = tailnet.NewDRPCClient(websocket.NetConn(context.Background(), conn, websocket.MessageBinary), slog.Make())
	if err != nil {
		return err
	}
	c.say(event{"event": "dialed"})
	return nil
}

func (c *client) refresh() error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	answer, err := c.rpc.RefreshResumeToken(ctx, &tailnetproto.RefreshResumeTokenRequest{})
	if err != nil {
		return err
	}
	c.say(event{
		"event": "token", "token": answer.Token, "refresh_in": answer.RefreshIn.AsDuration().Seconds(),
		"expires_in": time.Until(answer.ExpiresAt.AsTime()).Seconds(),
	})
	return nil
}

type encoding struct{}

func (encoding) Marshal(m drpc.Message) ([]byte, error) {
	return proto.Marshal(m.(proto.Message))
}

func (encoding) Unmarshal(b []byte, m drpc.Message) error {
	return proto.Unmarshal(b, m.(proto.Message))
}

// unknown makes a call that no server has, and says what Coder's clients make of the answer.
func (c *client) unknown(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	in, out := &tailnetproto.StreamDERPMapsRequest{}, &tailnetproto.DERPMap{}
	err := c.rpc.DRPCConn().Invoke(ctx, path, encoding{}, in, out)
	if err == nil {
		return errors.New("it was answered")
	}
	c.say(event{"event": "unknown", "code": drpcerr.Code(err), "unimplemented": drpcerr.Code(err) == drpcerr.Unimplemented, "error": err.Error()})
	return nil
}

// maps says each relay map that the server streams.
func (c *client) maps(rpc tailnetproto.DRPCTailnetClient) {
	stream, err := rpc.StreamDERPMaps(context.Background(), &tailnetproto.StreamDERPMapsRequest{})
	for err == nil {
		var m *tailnetproto.DERPMap
		if m, err = stream.Recv(); err == nil {
			c.say(event{"event": "map", "map": tailnet.DERPMapFromProto(m)})
		}
	}
	c.say(event{"event": "maps_ended", "error": err.Error()})
}
