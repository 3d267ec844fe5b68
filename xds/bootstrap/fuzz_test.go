package bootstrap

import (
	"bytes"
	"path"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Whatever the options are: they are refused, or Envoy reads the same of them and nothing
// that one of them slipped in.
func FuzzOptions(f *testing.F) {
	d := Defaults()
	f.Add("web.shop", "web.shop", d.Address, d.ServerName, d.RootsPath, d.TokenPath, d.Port)
	f.Add("$(POD_NAME)", `","admin":{"access_log_path":"/x"},"x":"`, "::1", "a", "/a", "/b/../c", uint16(1))
	f.Add("\xff", "a\nb", "10.0.0.1", "*", "relative", "/", uint16(0))
	f.Fuzz(func(t *testing.T, id, cluster, address, name, roots, token string, port uint16) {
		o := Defaults()
		o.NodeID, o.NodeCluster, o.Address, o.ServerName, o.RootsPath, o.TokenPath, o.Port = id, cluster, address, name, roots, token, port
		b, err := New(o)
		if err != nil {
			return
		}
		if id == "" || cluster == "" || address == "" || name == "" || port == 0 || !path.IsAbs(roots) || !path.IsAbs(token) {
			t.Errorf("%+v is taken", o)
		}
		raw, err := JSON(b)
		if err != nil {
			return // no JSON can have such bytes
		}
		var read bootstrapv3.Bootstrap
		if err := protojson.Unmarshal(raw, &read); err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		if !proto.Equal(b, &read) {
			t.Errorf("it is read as %s", raw)
		}
		if again, err := JSON(b); err != nil || !bytes.Equal(again, raw) || bytes.ContainsRune(raw, '\n') {
			t.Errorf("another time it is %s (%v)", again, err)
		}
	})
}
