// A DERP client that is driven by lines of JSON. The module that uses it decides which version of tailscale.com it is.
module tailnet.example/interop/derppeer

go 1.24.0

require tailscale.com v1.46.1
