package kube

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// CertManagerNamespace is where cert-manager runs.
const CertManagerNamespace = "cert-manager"

// CertManagerKind is a kind of cert-manager's API.
func CertManagerKind(kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: "cert-manager.io", Version: "v1", Kind: kind}
}

// InstallCertManager builds the cert-manager of a directory, unless that is done,
// installs it and waits until its webhook answers the API server. The directory has
// a manifests.yaml, and is a module that asks for cert-manager's.
func (c *Cluster) InstallCertManager(ctx context.Context, dir string) error {
	image := exec.CommandContext(ctx, filepath.Join(dir, "..", "images", "build.sh"), "cert-manager")
	image.Stderr = os.Stderr
	if err := image.Run(); err != nil {
		return fmt.Errorf("building cert-manager's image: %w", err)
	}
	text, err := certManager(ctx, dir)
	if err != nil {
		return err
	}
	if err := c.Apply(ctx, text); err != nil {
		return err
	}
	if err := c.Deployed(ctx, CertManagerNamespace, 2*time.Minute); err != nil {
		return err
	}
	if err := Eventually(ctx, time.Minute, "the authority of cert-manager's webhook", c.injectCertManager); err != nil {
		return err
	}
	return Eventually(ctx, time.Minute, "an answer of cert-manager's webhook", func(ctx context.Context) error {
		return c.dryRun(ctx, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "cert-manager.io/v1",
			"kind":       "Issuer",
			"metadata":   map[string]any{"generateName": "dry-run-", "namespace": CertManagerNamespace},
			"spec":       map[string]any{"selfSigned": map[string]any{}},
		}})
	})
}

// RemoveCertManager removes what InstallCertManager has installed, with all
// objects of cert-manager's API, and waits until it is gone.
func (c *Cluster) RemoveCertManager(ctx context.Context, dir string) error {
	text, err := certManager(ctx, dir)
	if err != nil {
		return err
	}
	if err := c.Delete(ctx, text); err != nil {
		return err
	}
	return c.NamespaceGone(ctx, CertManagerNamespace, time.Minute)
}

// certManager is all that is installed.
func certManager(ctx context.Context, dir string) (string, error) {
	list := exec.CommandContext(ctx, "go", "-C", dir, "list", "-m", "-f", "{{.Dir}}", "github.com/cert-manager/cert-manager")
	list.Stderr = os.Stderr
	module, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("looking for cert-manager's module: %w", err)
	}
	definitions, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(module)), "deploy", "crds", "*.yaml"))
	if err != nil || len(definitions) == 0 {
		return "", errors.Join(fmt.Errorf("cert-manager's module has no definitions in %s", module), err)
	}
	var text strings.Builder
	for _, file := range append(definitions, filepath.Join(dir, "manifests.yaml")) {
		content, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		text.WriteString("---\n" + string(content) + "\n")
	}
	return text.String(), nil
}

// injectCertManager does once what cert-manager's cainjector does all the time.
func (c *Cluster) injectCertManager(ctx context.Context) error {
	const name = "cert-manager-webhook"
	secret, err := c.Client.CoreV1().Secrets(CertManagerNamespace).Get(ctx, name+"-ca", metav1.GetOptions{})
	if err != nil {
		return err
	}
	patch := fmt.Sprintf(`[{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": %q}]`,
		base64.StdEncoding.EncodeToString(secret.Data["ca.crt"]))
	for _, resource := range []string{"validatingwebhookconfigurations", "mutatingwebhookconfigurations"} {
		r := c.Dynamic.Resource(schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: resource})
		if _, err := r.Patch(ctx, name, "application/json-patch+json", []byte(patch), metav1.PatchOptions{FieldManager: fieldManager}); err != nil {
			return err
		}
	}
	return nil
}
