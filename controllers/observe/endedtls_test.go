package observe

import (
	"reflect"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

func TestPortsAtWhichTLSEnds(t *testing.T) {
	web := mesh.Name{Namespace: "shop", Name: "web"}
	ref := v1alpha1.CertificateRef{Name: "web"}
	for name, c := range map[string]struct {
		ports []v1alpha1.PortTLS
		want  []mesh.PortTLS
		says  string
	}{
		"its own port by default": {[]v1alpha1.PortTLS{{Port: 8443, CertificateRef: ref}}, []mesh.PortTLS{{Port: 8443, Target: 8443, Certificate: web}}, ""},
		"another":                 {[]v1alpha1.PortTLS{{Port: 8443, TargetPort: 8080, CertificateRef: ref}}, []mesh.PortTLS{{Port: 8443, Target: 8080, Certificate: web}}, ""},
		"twice":                   {[]v1alpha1.PortTLS{{Port: 8443, CertificateRef: ref}, {Port: 8443, TargetPort: 80, CertificateRef: ref}}, []mesh.PortTLS{{Port: 8443, Target: 8443, Certificate: web}}, "port 8443 is there twice"},
		"no port":                 {[]v1alpha1.PortTLS{{Port: 70000, CertificateRef: ref}}, []mesh.PortTLS{{Certificate: web}}, "70000 is no port"},
		"no target":               {[]v1alpha1.PortTLS{{Port: 8443, TargetPort: -1, CertificateRef: ref}}, []mesh.PortTLS{{Port: 8443, Certificate: web}}, "-1 is no port"},
		"no certificate":          {[]v1alpha1.PortTLS{{Port: 8443}}, []mesh.PortTLS{{Port: 8443, Target: 8443, Certificate: mesh.Name{Namespace: "shop"}}}, "write the name of a Secret"},
	} {
		got := policy(&v1alpha1.MeshPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}, Spec: v1alpha1.MeshPolicySpec{TLS: &v1alpha1.TLS{Ports: c.ports}}})
		if !reflect.DeepEqual(got.TLS.Ports, c.want) || !strings.Contains(got.Invalid, c.says) || (got.Invalid == "") != (c.says == "") {
			t.Errorf("%s: %v, %q; want %v, %q", name, got.TLS.Ports, got.Invalid, c.want, c.says)
		}
	}
}
