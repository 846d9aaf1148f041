// Command coordinator is Coder's coordinator with its client service behind the routes of the server, without accounts:
// whoever asks is served. Requests are lines of JSON on standard input, events lines on standard output.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cdr.dev/slog"
	"cdr.dev/slog/sloggers/sloghuman"
	"github.com/google/uuid"
	"tailscale.com/tailcfg"

	"github.com/coder/coder/v2/codersdk"
	"github.com/coder/coder/v2/tailnet"
	"github.com/coder/coder/v2/tailnet/proto"
	"github.com/coder/websocket"
)

// A change of the relay map is told within this time.
const mapFrequency = 100 * time.Millisecond

func main() {
	address := flag.String("address", "127.0.0.1:0", "serve here")
	agent := flag.String("agent", "", "id of the agent that connects as itself")
	relays := flag.String("relays", "{}", "relay map as JSON")
	verbose := flag.Bool("v", false, "log what the coordinator does")
	flag.Parse()
	if err := run(*address, *agent, *relays, *verbose); err != nil {
		log.Fatal(err)
	}
}

type coordinator struct {
	agent   uuid.UUID
	service *tailnet.ClientService
	tokens  tailnet.ResumeTokenProvider
	relays  atomic.Pointer[tailcfg.DERPMap]
	output  sync.Mutex

	mu    sync.Mutex
	conns map[*websocket.Conn]struct{}
}

func run(address, agent, relays string, verbose bool) error {
	c := &coordinator{tokens: tailnet.NewInsecureTestResumeTokenProvider(), conns: map[*websocket.Conn]struct{}{}}
	if agent != "" {
		id, err := uuid.Parse(agent)
		if err != nil {
			return fmt.Errorf("agent: %w", err)
		}
		c.agent = id
	}
	if err := c.setRelays([]byte(relays)); err != nil {
		return err
	}
	logger := slog.Make()
	if verbose {
		logger = slog.Make(sloghuman.Sink(os.Stderr)).Leveled(slog.LevelDebug)
	}
	inner := tailnet.NewCoordinator(logger)
	var pointer atomic.Pointer[tailnet.Coordinator]
	pointer.Store(&inner)
	service, err := tailnet.NewClientService(tailnet.ClientServiceOptions{
		Logger: logger, CoordPtr: &pointer, DERPMapUpdateFrequency: mapFrequency,
		DERPMapFn:               c.relays.Load,
		NetworkTelemetryHandler: func([]*proto.TelemetryEvent) {},
		ResumeTokenProvider:     c.tokens,
	})
	if err != nil {
		return err
	}
	c.service = service
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v2/workspaceagents/{agent}/coordinate", func(w http.ResponseWriter, r *http.Request) {
		id, err := uuid.Parse(r.PathValue("agent"))
		if err != nil {
			refuse(w, http.StatusBadRequest, "agent", err)
			return
		}
		c.serve(w, r, "client", tailnet.ClientCoordinateeAuth{AgentID: id})
	})
	mux.HandleFunc("GET /api/v2/workspaceagents/me/rpc", func(w http.ResponseWriter, r *http.Request) {
		c.serve(w, r, "agent", tailnet.AgentCoordinateeAuth{ID: c.agent})
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	c.say(map[string]any{"event": "listening", "address": listener.Addr().String()})
	go c.requests(server, inner)
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (c *coordinator) say(event map[string]any) {
	line, err := json.Marshal(event)
	if err != nil {
		panic(err)
	}
	c.output.Lock()
	defer c.output.Unlock()
	fmt.Println(string(line))
}

func (c *coordinator) setRelays(text []byte) error {
	var relays tailcfg.DERPMap
	if err := json.Unmarshal(text, &relays); err != nil {
		return fmt.Errorf("relay map: %w", err)
	}
	c.relays.Store(&relays)
	return nil
}

// requests serves standard input; its end is the end of the program.
func (c *coordinator) requests(server *http.Server, inner tailnet.Coordinator) {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var request struct {
			Op  string          `json:"op"`
			Map json.RawMessage `json:"map"`
		}
		err := json.Unmarshal(lines.Bytes(), &request)
		if err == nil {
			switch request.Op {
			case "relays":
				err = c.setRelays(request.Map)
			case "drop":
				// As a network that breaks: no good-bye.
				c.dropAll()
			default:
				err = errors.New("no such request")
			}
		}
		if err != nil {
			c.say(map[string]any{"event": "failed", "op": request.Op, "error": err.Error()})
		}
	}
	_ = inner.Close()
	_ = server.Close()
}

func (c *coordinator) dropAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.conns {
		_ = conn.CloseNow()
	}
}

// refuse answers as the server does.
func refuse(w http.ResponseWriter, status int, field string, err error) {
	answer := codersdk.Response{Message: err.Error()}
	if field != "" {
		answer.Validations = []codersdk.ValidationError{{Field: field, Detail: err.Error()}}
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer)
}

func (c *coordinator) serve(w http.ResponseWriter, r *http.Request, name string, auth tailnet.CoordinateeAuth) {
	query := r.URL.Query()
	version := query.Get("version")
	if version == "" {
		version = "1.0"
	}
	if err := proto.CurrentVersion.Validate(version); err != nil {
		c.say(map[string]any{"event": "refused", "role": name, "version": version, "error": err.Error()})
		refuse(w, http.StatusBadRequest, "version", err)
		return
	}
	id := uuid.New()
	if name == "agent" {
		id = c.agent
	}
	token := query.Get("resume_token")
	if token != "" {
		resumed, err := c.tokens.VerifyResumeToken(r.Context(), token)
		if err != nil {
			c.say(map[string]any{"event": "refused", "role": name, "error": err.Error()})
			refuse(w, http.StatusUnauthorized, "resume_token", errors.New("Invalid resume token"))
			return
		}
		id = resumed
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	c.keep(conn, true)
	defer c.keep(conn, false)
	c.say(map[string]any{"event": "connected", "role": name, "id": id, "version": version, "resumed": token != ""})
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	err = c.service.ServeClient(ctx, version, websocket.NetConn(ctx, conn, websocket.MessageBinary), tailnet.StreamID{Name: name, ID: id, Auth: auth})
	_ = conn.CloseNow()
	event := map[string]any{"event": "disconnected", "role": name, "id": id}
	if err != nil && !errors.Is(err, io.EOF) {
		event["error"] = strings.TrimSpace(err.Error())
	}
	c.say(event)
}

func (c *coordinator) keep(conn *websocket.Conn, open bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if open {
		c.conns[conn] = struct{}{}
	} else {
		delete(c.conns, conn)
	}
}
