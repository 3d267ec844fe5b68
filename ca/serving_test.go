package ca

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// handshake connects to a server of the given configuration, and returns the
// certificate it presents to a client that trusts the roots.
func handshake(t *testing.T, server *tls.Config, roots []byte, name string, now func() time.Time) (*x509.Certificate, error) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	a, b := net.Pipe()
	defer func() { _ = a.Close() }()
	served := make(chan error, 1)
	go func() {
		defer func() { _ = b.Close() }()
		served <- tls.Server(b, server).HandshakeContext(t.Context())
	}()
	client := tls.Client(a, &tls.Config{RootCAs: pool, ServerName: name, Time: now})
	err := client.HandshakeContext(t.Context())
	_ = a.Close() // the server sees it, if it still waits
	<-served
	if err != nil {
		return nil, err
	}
	return client.ConnectionState().PeerCertificates[0], nil
}

func serving(o *Options) { o.ServingNames = ServingNames("tulled", "tulle-system") }

func TestServersPresentEachOfTheServicesNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newTestIssuer(t)
		h := runCertificates(t, issuer, serving)
		for _, name := range []string{"tulled.tulle-system.svc", "tulled.tulle-system.svc.cluster.local", "tulled.tulle-system", "tulled"} {
			if _, err := handshake(t, h.ServingTLS(), issuer.m.bundle, name, issuer.clock.now); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := handshake(t, h.ServingTLS(), issuer.m.bundle, "kubernetes.default.svc", issuer.clock.now); err == nil {
			t.Error("another service's name is accepted")
		}
	})
}

// Proxies' certificates take their turn, and the old roots go when all have had it.
func TestServingCertificateIsTheFirstOfANewIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newTestIssuer(t)
		h := runCertificates(t, issuer, serving)
		synctest.Wait()
		before, err := h.GetCertificate(&tls.ClientHelloInfo{})
		if err != nil {
			t.Fatal(err)
		}
		issuer.replace(t, true)
		synctest.Wait()
		if after, err := h.GetCertificate(&tls.ClientHelloInfo{}); err != nil || after == before {
			t.Errorf("the certificate is that of the issuer before (%v)", err)
		}
	})
}

func TestServingCertificateIsRenewedWithoutClientsOrThemWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newTestIssuer(t)
		h := runCertificates(t, issuer, serving, func(o *Options) { o.Lifetime = time.Minute })
		synctest.Wait()
		config := h.ServingTLS()
		serials := map[string]bool{}
		for range 10 {
			cert, err := handshake(t, config, issuer.m.bundle, "tulled.tulle-system.svc", issuer.clock.now)
			if err != nil {
				t.Fatal(err)
			}
			serials[cert.SerialNumber.String()] = true
			time.Sleep(40 * time.Second)
			synctest.Wait()
			if o, _ := h.outlook(Serving); time.Until(o.soonest) < 20*time.Second {
				t.Errorf("%s left, and nobody has renewed it", time.Until(o.soonest))
			}
		}
		if len(serials) != 10 {
			t.Errorf("%d certificates in ten lives", len(serials))
		}
	})
}

func TestServersRefuseRatherThanPresentAnExpiredCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newTestIssuer(t)
		h := runCertificates(t, issuer, serving)
		synctest.Wait()
		issuer.fail(errRefused)
		time.Sleep(59 * time.Minute)
		if _, err := handshake(t, h.ServingTLS(), issuer.m.bundle, "tulled", issuer.clock.now); err != nil {
			t.Errorf("while it is valid: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if cert, err := handshake(t, h.ServingTLS(), issuer.m.bundle, "tulled", issuer.clock.now); err == nil {
			t.Errorf("presents a certificate until %s", cert.NotAfter)
		}
		issuer.fail(nil)
		if _, err := handshake(t, h.ServingTLS(), issuer.m.bundle, "tulled", issuer.clock.now); err != nil {
			t.Errorf("after the issuer came back: %v", err)
		}
	})
}
