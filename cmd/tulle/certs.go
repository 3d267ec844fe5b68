package main

import (
	"context"
	"slices"
	"strings"
	"time"
)

// certRow is a certificate that the proxy holds.
type certRow struct {
	// Use is workload (its own, with a key) or authority (one that it trusts).
	Use        string    `json:"use"`
	Identities []string  `json:"identities,omitempty"`
	Serial     string    `json:"serial"`
	From       time.Time `json:"validFrom"`
	Until      time.Time `json:"validUntil"`
	// Left is the time until the end in seconds; negative once it is over.
	Left int64 `json:"secondsLeft"`
	// Contexts counts the TLS contexts of listeners and clusters that use it.
	Contexts int `json:"contexts"`
}

const (
	useWorkload  = "workload"
	useAuthority = "authority"
)

type certsView []certRow

func (v certsView) data() any { return v }

// lacks reports whether the proxy has no valid certificate of its own, or one
// that has ended.
func (v certsView) lacks() bool {
	own := func(r certRow) bool { return r.Use == useWorkload }
	return !slices.ContainsFunc(v, own) || slices.ContainsFunc(v, func(r certRow) bool { return r.Left <= 0 })
}

func (v certsView) table(now time.Time) *table {
	t := &table{header: []string{"USE", "IDENTITY", "SERIAL", "VALID FROM", "VALID UNTIL", "LEFT"}}
	own := false
	for _, r := range v {
		left := "expired"
		if r.Left > 0 {
			left = age(now, r.Until)
		}
		own = own || r.Use == useWorkload
		t.row(r.Use, strings.Join(r.Identities, ", "), r.Serial, r.From.UTC().Format(time.RFC3339), r.Until.UTC().Format(time.RFC3339), left)
	}
	if !own {
		t.note("The proxy has no certificate of its own (yet): see whether it is connected with `status`.")
	}
	return t
}

// adminCerts is /certs.
type adminCerts struct {
	Certificates []struct {
		Authorities []adminCert `json:"ca_cert"`
		Chain       []adminCert `json:"cert_chain"`
	} `json:"certificates"`
}

type adminCert struct {
	Serial string `json:"serial_number"`
	Names  []struct {
		URI string `json:"uri"`
		DNS string `json:"dns"`
		IP  string `json:"ip_address"`
	} `json:"subject_alt_names"`
	From  time.Time `json:"valid_from"`
	Until time.Time `json:"expiration_time"`
}

func readCertsView(ctx context.Context, admin endpoint, o proxyOptions) (view, error) {
	rows, err := readCerts(ctx, admin, o.now)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(rows, func(r certRow) bool {
		return !o.matches(r.Use) && !slices.ContainsFunc(r.Identities, o.matches)
	}), nil
}

// readCerts reads the proxy's certificates. Envoy lists them once for each TLS
// context; they are told apart by use and serial number.
func readCerts(ctx context.Context, admin endpoint, now time.Time) (certsView, error) {
	var a adminCerts
	if err := readJSON(ctx, admin, "/certs", &a); err != nil {
		return nil, err
	}
	rows := certsView{}
	add := func(use string, certs []adminCert) {
		for _, c := range certs {
			i := slices.IndexFunc(rows, func(r certRow) bool { return r.Use == use && r.Serial == c.Serial })
			if i >= 0 {
				rows[i].Contexts++
				continue
			}
			r := certRow{Use: use, Serial: c.Serial, From: c.From, Until: c.Until, Left: int64(c.Until.Sub(now).Seconds()), Contexts: 1}
			for _, n := range c.Names {
				for _, name := range []string{n.URI, n.DNS, n.IP} {
					if name != "" {
						r.Identities = append(r.Identities, name)
					}
				}
			}
			rows = append(rows, r)
		}
	}
	for _, c := range a.Certificates {
		add(useWorkload, c.Chain)
		add(useAuthority, c.Authorities)
	}
	slices.SortStableFunc(rows, func(a, b certRow) int { return -strings.Compare(a.Use, b.Use) }) // workload first
	return rows, nil
}
