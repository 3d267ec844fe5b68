package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// Cluster is a connection to a Kubernetes cluster.
type Cluster struct {
	Config  *rest.Config
	Client  kubernetes.Interface
	Dynamic dynamic.Interface
	mapper  meta.ResettableRESTMapper
}

// ErrNoCluster means that KUBECONFIG names none.
var ErrNoCluster = errors.New("KUBECONFIG names no cluster; \"make cluster\" starts one and says where its file is")

// Connect connects to the cluster that KUBECONFIG names, and checks that it
// answers.
func Connect(ctx context.Context) (*Cluster, error) {
	path := os.Getenv("KUBECONFIG")
	if path == "" {
		return nil, ErrNoCluster
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	// The default of 5 a second would make the client the slowest part.
	config.QPS, config.Burst = 200, 400
	config.UserAgent = "tulle-e2e"
	// Warnings go to whoever applies by hand; here they would only be noise.
	config.WarningHandler = rest.NoWarnings{}
	c := &Cluster{Config: config}
	if c.Client, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	if c.Dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("making a dynamic client: %w", err)
	}
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(c.Client.Discovery()))
	if _, err := c.Client.Discovery().ServerVersion(); err != nil {
		return nil, fmt.Errorf("asking the cluster of %s for its version: %w", path, err)
	}
	return c, nil
}

// Quiet turns off what Kubernetes' client libraries log by themselves, of
// connections that end as they should. For the main function to call.
func Quiet() {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
}

// pollInterval is short: what is waited for mostly takes less than a second.
const pollInterval = 100 * time.Millisecond

// Eventually calls check until it returns nil, for at most the given time. The
// error is the last one that check returned, with what was waited for.
func Eventually(ctx context.Context, atMost time.Duration, what string, check func(context.Context) error) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, pollInterval, atMost, true, func(ctx context.Context) (bool, error) {
		err := check(ctx)
		// A check cut short by the end of the wait knows less than the one before.
		if err == nil || ctx.Err() == nil || last == nil {
			last = err
		}
		return err == nil, nil
	})
	if err == nil {
		return nil
	}
	if last == nil {
		last = err
	}
	return fmt.Errorf("waited %v for %s: %w", atMost, what, last)
}
