package e2e

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// The authority's Secret is deleted by mistake, while the control plane runs and
// while it does not; a backup brings it back. Nobody who calls notices, and pods
// that are new are trusted by those that are not.
func TestTheAuthorityIsPutBackAndRestored(t *testing.T) {
	s := newSpace(t, "authority", true)
	s.deploy(app{name: "client"}, ending(2, nil, "--grace=5s"))
	s.strict()
	secrets := s.c.Client.CoreV1().Secrets(kube.TulleNamespace)
	backup, err := secrets.Get(t.Context(), "tulle-ca", metav1.GetOptions{})
	must(t, err)
	same := func(ctx context.Context) error {
		now, err := secrets.Get(ctx, "tulle-ca", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for key, content := range backup.Data {
			if !bytes.Equal(now.Data[key], content) {
				return fmt.Errorf("%s is another", key)
			}
		}
		return nil
	}
	loads := map[string][]string{"HTTP/1": {"http", s.url("server"), "--rate", "100", "--connections", "8"}}
	s.underLoad(s.in("client"), loads, func() {
		must(t, secrets.Delete(t.Context(), "tulle-ca", metav1.DeleteOptions{}))
		start := time.Now()
		eventually(t, time.Minute, "the deleted authority to be put back", same)
		figure(t, "the authority's Secret was put back %.1f s after its deletion", time.Since(start).Seconds())
		s.rolls("server") // new certificates are of the same authority

		must(t, scaleControlPlane(t.Context(), s.c, 0))
		must(t, secrets.Delete(t.Context(), "tulle-ca", metav1.DeleteOptions{}))
		restored := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: backup.Name, Labels: backup.Labels}, Type: backup.Type, Data: backup.Data}
		_, err := secrets.Create(t.Context(), restored, metav1.CreateOptions{})
		must(t, err)
		must(t, scaleControlPlane(t.Context(), s.c, 2))
		must(t, same(t.Context()))
		s.rolls("server")
	})
}
