package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by the build of a release (-ldflags "-X main.version=v1.2.3").
var version string

type versionCmd struct {
	JSON bool `name:"json" help:"Print a JSON object."`
}

// buildInfo says what this program was built from.
type buildInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the source
	Modified bool   `json:"modified,omitempty"` // the source had changes beyond it
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func build() buildInfo {
	out := buildInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if ok {
		if out.Version == "" {
			out.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				out.Revision = s.Value
			case "vcs.modified":
				out.Modified = s.Value == "true"
			}
		}
	}
	if out.Version == "" {
		out.Version = "(devel)"
	}
	return out
}

func (c *versionCmd) Run(g *globals) error {
	b := build()
	if c.JSON {
		return json.NewEncoder(stdout).Encode(b)
	}
	fmt.Fprintf(stdout, "kvbfs %s (%s, %s)\n", b.Version, b.Go, b.Platform)
	return nil
}
