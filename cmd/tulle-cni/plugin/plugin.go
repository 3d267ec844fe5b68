package plugin

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/tulle-mesh/tulle/cmd/tulle-init/redirect"
)

const (
	// Type is the plugin's name: in a list of plugins, and as a program.
	Type = "tulle-cni"

	// Annotation is what the webhook (webhook.AnnotationRedirect) writes on a
	// pod that is to be redirected from the node.
	Annotation = "mesh.tulle.dev/redirect"

	// CapabilityAnnotations and CapabilityDNS are what the plugin wants to be
	// told about a pod.
	CapabilityAnnotations = "io.kubernetes.cri.pod-annotations"
	CapabilityDNS         = "dns"
)

// Capabilities are what a runtime tells of a pod, by capability.
type Capabilities struct {
	Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	DNS         struct {
		Servers []string `json:"servers"`
	} `json:"dns"`
}

// configuration is what the plugin reads from standard input.
type configuration struct {
	RuntimeConfig Capabilities    `json:"runtimeConfig"`
	PrevResult    json.RawMessage `json:"prevResult"`
}

// Main runs the plugin on the process's environment, standard input and output,
// and ends the process with status 1 on a failure.
func Main(build string) {
	funcs := skel.CNIFuncs{
		Add:    func(args *skel.CmdArgs) error { return add(args, os.Stdout) },
		Check:  check,
		Del:    nothing,
		GC:     nothing,
		Status: nothing,
	}
	// Before 0.3.0 there were no lists.
	skel.PluginMainFuncs(funcs, version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"), "CNI plugin "+Type+" "+build)
}

// add redirects a pod that is to be, and passes the result on as it came.
func add(args *skel.CmdArgs, stdout io.Writer) error {
	conf, err := read(args.StdinData)
	if err != nil {
		return err
	}
	if len(conf.PrevResult) == 0 {
		return types.NewError(types.ErrInvalidNetworkConfig, Type+" makes no network: it has to stand after a plugin that does, in a list", "")
	}
	if want, ok := conf.RuntimeConfig.Annotations[Annotation]; ok {
		if err := redirectPod(args.Netns, want, conf.RuntimeConfig.DNS.Servers); err != nil {
			return types.NewError(types.ErrInternal, "Tulle cannot redirect the pod's traffic to its sidecar", err.Error())
		}
	}
	_, err = stdout.Write(conf.PrevResult)
	return err
}

// check reports a pod whose rules are gone.
func check(args *skel.CmdArgs) error {
	conf, err := read(args.StdinData)
	if err != nil {
		return err
	}
	if _, ok := conf.RuntimeConfig.Annotations[Annotation]; !ok {
		return nil
	}
	err = ns.WithNetNSPath(args.Netns, func(ns.NetNS) error { return redirect.Applied() })
	if err != nil {
		return types.NewError(types.ErrInternal, "the pod's traffic is not redirected to its sidecar", err.Error())
	}
	return nil
}

// nothing is left to be done: the rules go with the network namespace, and the
// plugin needs nothing to be ready.
func nothing(*skel.CmdArgs) error { return nil }

func read(stdin []byte) (configuration, error) {
	var conf configuration
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return conf, types.NewError(types.ErrDecodingFailure, "reading the network configuration", err.Error())
	}
	return conf, nil
}

func redirectPod(netns, want string, resolvers []string) error {
	c, err := Configuration(want, resolvers)
	if err != nil {
		return err
	}
	return ns.WithNetNSPath(netns, func(ns.NetNS) error { return redirect.Apply(c) })
}

// Configuration reads the annotation, and the pod's resolvers.
func Configuration(annotation string, resolvers []string) (redirect.Config, error) {
	if strings.TrimSpace(annotation) == "" {
		return redirect.Config{}, fmt.Errorf("the annotation %s is empty", Annotation)
	}
	// The last word about a file is no file: that would be one of the node's.
	args := append(strings.Fields(annotation), "--resolv-conf=")
	c, err := redirect.Parse(args, io.Discard)
	if err != nil {
		return c, fmt.Errorf("reading the annotation %s: %w", Annotation, err)
	}
	for _, r := range resolvers {
		if a, err := netip.ParseAddr(r); err == nil {
			c.Resolvers = append(c.Resolvers, a.WithZone("").Unmap())
		}
	}
	return c, c.Validate()
}
