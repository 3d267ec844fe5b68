package main

import (
	"fmt"
	"os"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/zapr"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/tulle-mesh/tulle/ca"
	"github.com/tulle-mesh/tulle/webhook"
)

// version is set by the build (-ldflags "-X main.version=…").
var version = "dev"

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "tulled:", err)
		os.Exit(1)
	}
}

// options are the command's flags.
type options struct {
	namespace, revision   string
	proxyImage, initImage string
	redirection           webhook.Redirection
	xds, metrics, health  string
	debug                 string
	webhookPort           int
	pprof                 bool
	logLevel              string
	maxStreamAge          time.Duration
	rootSpreadTime        time.Duration
	pod, tokenFile        string
}

func command() *cobra.Command {
	var (
		o           options
		redirection string
	)
	c := &cobra.Command{
		Use:           "tulled",
		Short:         "Tulle's control plane: drives the Envoy sidecars of a Kubernetes cluster",
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(*cobra.Command, []string) error {
			log, err := logger(o.logLevel)
			if err != nil {
				return err
			}
			if err := webhook.ValidRevision(o.revision); err != nil {
				return fmt.Errorf("--revision: %w", err)
			}
			if o.redirection, err = webhook.ParseRedirection(redirection); err != nil {
				return fmt.Errorf("--redirection: %w", err)
			}
			ctrl.SetLogger(log)
			klog.SetLogger(log)
			return run(ctrl.SetupSignalHandler(), o, log)
		},
	}
	f := c.Flags()
	f.StringVar(&o.namespace, "namespace", env("POD_NAMESPACE", "tulle-system"), "namespace of the control plane, whose policies hold for the whole mesh")
	f.StringVar(&o.revision, "revision", env("REVISION", webhook.DefaultRevision), "name of this control plane among several, which pods choose by the label "+webhook.LabelRevision+"; its Service is tulled-NAME, the default's tulled")
	f.StringVar(&o.proxyImage, "proxy-image", "localhost/envoy:1.40.0", "image of Envoy, unless the MeshConfig names another")
	f.StringVar(&o.initImage, "init-image", "localhost/tulle-init:dev", "image of tulle-init")
	f.StringVar(&redirection, "redirection", string(webhook.RedirectionInit), "how traffic is led to sidecars unless a label says otherwise: by an init container (init), or by the CNI plugin, which has to be installed (cni)")
	f.StringVar(&o.xds, "xds-address", ":15010", "address to serve proxies on, over TLS")
	f.IntVar(&o.webhookPort, "webhook-port", 9443, "port to serve admission webhooks on, over TLS")
	f.StringVar(&o.metrics, "metrics-address", ":8080", "address to serve Prometheus metrics on")
	f.StringVar(&o.health, "health-address", ":8081", "address to serve /healthz and /readyz on")
	f.StringVar(&o.debug, "debug-address", "127.0.0.1:8082", "address to serve /debug/proxies and /debug/ca on, for the CLI; keep it on the loopback")
	f.StringVar(&o.tokenFile, "token-file", "/var/run/secrets/tulle/token", "this replica's service account token of the audience tulle, to show to other replicas")
	f.BoolVar(&o.pprof, "pprof", false, "serve /debug/pprof on the debug address too")
	f.DurationVar(&o.maxStreamAge, "max-stream-age", 30*time.Minute, "about how long a proxy's stream lasts before it connects anew, so that proxies spread over all replicas; 0 is without limit")
	f.DurationVar(&o.rootSpreadTime, "root-spread-time", ca.DefaultSpreadTime, "how long new roots are distributed at least before they are signed with, so that every kubelet has brought them to its pods")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	o.pod = env("POD_NAME", "tulled")
	return c
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// logger writes JSON lines to standard error.
func logger(level string) (logr.Logger, error) {
	l, err := zapcore.ParseLevel(level)
	if err != nil {
		return logr.Logger{}, fmt.Errorf("--log-level: %w", err)
	}
	c := zap.NewProductionConfig()
	c.Level = zap.NewAtomicLevelAt(l)
	c.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	c.DisableStacktrace = true
	z, err := c.Build()
	if err != nil {
		return logr.Logger{}, fmt.Errorf("making the logger: %w", err)
	}
	return zapr.NewLogger(z), nil
}
