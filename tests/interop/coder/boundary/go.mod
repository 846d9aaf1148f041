module github.com/coder/boundary

go 1.24.0

require github.com/coder/serpent v0.12.0
