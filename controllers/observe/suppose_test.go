package observe

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

func TestWhatIsSupposedIsWhatWouldBeObserved(t *testing.T) {
	o := New(Options{Applier: newModel()})
	meta := metav1.ObjectMeta{Namespace: "shop", Name: "a"}
	for what, c := range map[string]struct {
		object  client.Object
		deleted bool
		want    mesh.Ref
	}{
		"a policy":           {&v1alpha1.MeshPolicy{ObjectMeta: meta}, false, mesh.Ref{Kind: mesh.KindPolicy, Name: mesh.Name{Namespace: "shop", Name: "a"}}},
		"a policy's end":     {&v1alpha1.MeshPolicy{ObjectMeta: meta}, true, mesh.Ref{Kind: mesh.KindPolicy, Name: mesh.Name{Namespace: "shop", Name: "a"}}},
		"the configuration":  {&v1alpha1.MeshConfig{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, false, mesh.Ref{Kind: mesh.KindConfig}},
		"its end":            {&v1alpha1.MeshConfig{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, true, mesh.Ref{Kind: mesh.KindConfig}},
		"keys of issuers":    {&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: mesh.JWKSName}}, false, mesh.Ref{Kind: mesh.KindKeys, Name: mesh.Name{Name: "shop"}}},
		"keys in a Secret":   {&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: mesh.JWKSName}}, false, mesh.Ref{Kind: mesh.KindKeys, Name: mesh.KeysName("shop", true)}},
		"their end":          {&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: mesh.JWKSName}}, true, mesh.Ref{Kind: mesh.KindKeys, Name: mesh.Name{Name: "shop"}}},
		"other certificates": {&corev1.ConfigMap{ObjectMeta: meta}, false, mesh.Ref{Kind: mesh.KindBundle, Name: mesh.Name{Namespace: "shop", Name: "a"}}},
	} {
		got, err := o.Suppose(c.object, c.deleted)
		if err != nil || got.Ref() != c.want {
			t.Errorf("%s: %v (%v), want %v", what, got.Ref(), err, c.want)
		}
	}
	if _, err := o.Suppose(&corev1.ServiceAccount{ObjectMeta: meta}, false); err == nil {
		t.Error("a kind that the mesh is not made of is taken")
	}
}
