package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	// Group is the API group of every kind of Tulle.
	Group = "mesh.tulle.dev"
	// Version is the version that this package describes.
	Version = "v1alpha1"
)

// GroupVersion returns the group and version of the kinds of this package.
func GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: Group, Version: Version}
}

// AddToScheme makes the kinds of this package known to a scheme, which is what
// clients and caches need to read and write them.
func AddToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(
		GroupVersion(),
		&MeshPolicy{}, &MeshPolicyList{},
		&TrafficSplit{}, &TrafficSplitList{},
		&ExternalService{}, &ExternalServiceList{},
		&MeshConfig{}, &MeshConfigList{},
	)
	metav1.AddToGroupVersion(scheme, GroupVersion())
	return nil
}
