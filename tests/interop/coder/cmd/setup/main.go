// Command setup fills an empty Coder server: the first user, and workspaces with one agent each whose token is known.
// It prints one line of JSON with the session token and the agents' tokens.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/url"
	"os"
	"runtime"
	"time"

	"github.com/google/uuid"

	"github.com/coder/coder/v2/codersdk"
	"github.com/coder/coder/v2/provisioner/echo"
	"github.com/coder/coder/v2/provisionersdk/proto"
)

const (
	email    = "admin@example.com"
	password = "Correct-horse-7"
)

type workspace struct {
	Name       string    `json:"name"`
	AgentToken string    `json:"agent_token"`
	AgentID    uuid.UUID `json:"agent_id"`
}

func main() {
	server := flag.String("url", "", "the server")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := run(ctx, *server, flag.Args()); err != nil {
		log.Fatal(err)
	}
}

// run makes a workspace of each name.
func run(ctx context.Context, server string, names []string) error {
	base, err := url.Parse(server)
	if err != nil {
		return err
	}
	client := codersdk.New(base)
	first, err := client.CreateFirstUser(ctx, codersdk.CreateFirstUserRequest{Email: email, Username: "admin", Name: "Admin", Password: password})
	if err != nil {
		return fmt.Errorf("first user: %w", err)
	}
	login, err := client.LoginWithPassword(ctx, codersdk.LoginWithPasswordRequest{Email: email, Password: password})
	if err != nil {
		return fmt.Errorf("login: %w", err)
	}
	client.SetSessionToken(login.SessionToken)
	made := []workspace{}
	for _, name := range names {
		w, err := create(ctx, client, first.OrganizationID, name)
		if err != nil {
			return fmt.Errorf("workspace %s: %w", name, err)
		}
		made = append(made, w)
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"session_token": login.SessionToken, "workspaces": made})
}

// template is the archive of a template whose workspaces have one agent with this token.
func template(token string) ([]byte, error) {
	agent := &proto.Agent{
		Id: uuid.NewString(), Name: "main", OperatingSystem: "linux", Architecture: runtime.GOARCH,
		Auth:        &proto.Agent_Token{Token: token},
		DisplayApps: &proto.DisplayApps{WebTerminal: true, SshHelper: true, PortForwardingHelper: true},
	}
	resource := &proto.Resource{Name: "host", Type: "null_resource", Agents: []*proto.Agent{agent}}
	apply := &proto.Response{Type: &proto.Response_Apply{Apply: &proto.ApplyComplete{Resources: []*proto.Resource{resource}}}}
	return echo.Tar(&echo.Responses{Parse: echo.ParseComplete, ProvisionApply: []*proto.Response{apply}})
}

func create(ctx context.Context, client *codersdk.Client, organization uuid.UUID, name string) (workspace, error) {
	token := uuid.NewString()
	archive, err := template(token)
	if err != nil {
		return workspace{}, err
	}
	file, err := client.Upload(ctx, codersdk.ContentTypeTar, bytes.NewReader(archive))
	if err != nil {
		return workspace{}, err
	}
	version, err := client.CreateTemplateVersion(ctx, organization, codersdk.CreateTemplateVersionRequest{
		StorageMethod: codersdk.ProvisionerStorageMethodFile, FileID: file.ID, Provisioner: codersdk.ProvisionerTypeEcho,
	})
	if err != nil {
		return workspace{}, err
	}
	err = finished(ctx, func() (codersdk.ProvisionerJob, error) {
		v, err := client.TemplateVersion(ctx, version.ID)
		return v.Job, err
	})
	if err != nil {
		return workspace{}, err
	}
	made, err := client.CreateTemplate(ctx, organization, codersdk.CreateTemplateRequest{Name: name, VersionID: version.ID})
	if err != nil {
		return workspace{}, err
	}
	w, err := client.CreateUserWorkspace(ctx, codersdk.Me, codersdk.CreateWorkspaceRequest{TemplateID: made.ID, Name: name})
	if err != nil {
		return workspace{}, err
	}
	var build codersdk.WorkspaceBuild
	err = finished(ctx, func() (codersdk.ProvisionerJob, error) {
		build, err = client.WorkspaceBuild(ctx, w.LatestBuild.ID)
		return build.Job, err
	})
	if err != nil {
		return workspace{}, err
	}
	for _, resource := range build.Resources {
		for _, agent := range resource.Agents {
			return workspace{Name: name, AgentToken: token, AgentID: agent.ID}, nil
		}
	}
	return workspace{}, errors.New("the build has no agent")
}

// finished polls a job until it has succeeded.
func finished(ctx context.Context, job func() (codersdk.ProvisionerJob, error)) error {
	for {
		j, err := job()
		switch {
		case err != nil:
			return err
		case j.Status == codersdk.ProvisionerJobSucceeded:
			return nil
		case !j.Status.Active():
			return fmt.Errorf("the job ended as %s: %s", j.Status, j.Error)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
