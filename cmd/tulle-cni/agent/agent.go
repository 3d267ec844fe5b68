package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tulle-mesh/tulle/cmd/tulle-cni/node"
)

// Options of the agent; all are required.
type Options struct {
	NodeName string
	// Namespace and DaemonSet are the agent's own.
	Namespace, DaemonSet string
	// Configurations, Plugins and Results are the node's folders.
	Configurations, Plugins, Results string
	// Health is the address of /readyz.
	Health  string
	Version string
	Log     logr.Logger
}

// leaving is how long the agent may take to find out why it is to stop, and to
// take the plugin out.
const leaving = 10 * time.Second

// Run keeps the plugin in place and redirects pods until the context ends.
func Run(ctx context.Context, o Options) error {
	if o.NodeName == "" || o.Namespace == "" {
		return errors.New("the names of the node and of the namespace are not known: set NODE_NAME and POD_NAMESPACE, or --node and --namespace")
	}
	config, err := rest.InClusterConfig()
	if err != nil {
		return fmt.Errorf("finding the API server: %w", err)
	}
	return run(ctx, config, o)
}

func run(ctx context.Context, config *rest.Config, o Options) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	config.UserAgent = "tulle-cni/" + o.Version
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	n := &node.Node{Configurations: o.Configurations, Plugins: o.Plugins, Program: program}
	o.Log.Info("starting", "version", o.Version, "node", o.NodeName)

	health := &http.Server{Addr: o.Health, Handler: ready(n), ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- health.ListenAndServe() }()
	defer func() { _ = health.Close() }()

	kept := make(chan struct{})
	go func() { defer close(kept); n.Keep(ctx, o.Log) }()
	mended := make(chan struct{})
	go func() { defer close(mended); newMender(client, o).run(ctx) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving health: %w", err)
	case <-ctx.Done():
	}
	<-kept
	<-mended
	return leave(client, n, o)
}

// ready answers whether the plugin is in place.
func ready(n *node.Node) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		look := &node.Node{Configurations: n.Configurations, Plugins: n.Plugins, Program: n.Program}
		if err := look.Installed(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	return mux
}

// +kubebuilder:rbac:groups=apps,namespace=tulle-system,resources=daemonsets,resourceNames=tulle-cni,verbs=get

// leave takes the plugin out of the node if the DaemonSet is gone.
func leave(client kubernetes.Interface, n *node.Node, o Options) error {
	ctx, cancel := context.WithTimeout(context.Background(), leaving)
	defer cancel()
	set, err := client.AppsV1().DaemonSets(o.Namespace).Get(ctx, o.DaemonSet, metav1.GetOptions{})
	switch {
	case err == nil && set.DeletionTimestamp == nil:
		o.Log.Info("stopping; the plugin stays, for the DaemonSet does")
		return nil
	case err == nil, apierrors.IsNotFound(err), apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		// Who deletes all of it at once deletes the permission to look, too.
	default:
		o.Log.Error(err, "stopping; the plugin stays, for it is not known whether the DaemonSet does")
		return nil
	}
	changed, err := n.Remove()
	for _, did := range changed {
		o.Log.Info("plugin " + did)
	}
	if err != nil {
		return fmt.Errorf("taking the plugin out of the node: %w", err)
	}
	return nil
}
