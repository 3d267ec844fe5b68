package main

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/go-logr/logr"
	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/webhook"
	"github.com/tulle-mesh/tulle/xds/build"
)

// injection reads what injected pods get, at the moment they are created.
type injection struct {
	options options
	reader  client.Reader // a cache
	builder *build.Builder
	log     logr.Logger
}

// settings are the MeshConfig's over the command's flags. A MeshConfig that
// cannot be read is one that is not there: pods must start.
func (i injection) settings() webhook.Settings {
	c := i.builder.Snapshot().Config()
	s := webhook.Settings{
		Version: version, Revision: i.options.revision, InitImage: i.options.initImage, ProxyImage: i.options.proxyImage,
		Services: c.ServiceRanges, Pods: c.PodRanges, Resources: webhook.DefaultResources(),
		Redirection: i.options.redirection,
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var mesh v1alpha1.MeshConfig
	if err := i.reader.Get(ctx, types.NamespacedName{Name: v1alpha1.MeshConfigName}, &mesh); err != nil {
		if !apierrors.IsNotFound(err) {
			i.log.Error(err, "cannot read the MeshConfig; injecting with defaults")
		}
		return s
	}
	p := mesh.Spec.Proxy
	if p.Image != "" {
		s.ProxyImage = p.Image
	}
	if p.Resources != nil {
		s.Resources = *p.Resources
	}
	s.LogLevel = string(p.LogLevel)
	if p.Concurrency != nil {
		s.Concurrency = *p.Concurrency
	}
	return s
}
