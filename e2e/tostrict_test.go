package e2e

import (
	"testing"
	"time"
)

// Whoever moves a service to Strict does so while it is called. That the move happens is
// seen by a caller outside of the mesh, who is answered before it and not after it; that
// it costs nothing, by every call of the mesh: on connections that are kept and on new
// ones, of each protocol, to several pods, there and back again. The calls that are under
// way at the moment of the move are among them: 420 a second, and a move takes as long as
// proxies need to take it up.
func TestAMoveToStrictCostsNoCallOfTheMesh(t *testing.T) {
	s := newSpace(t, "tostrict", true)
	outside := newSpace(t, "outside", false)
	s.deploy(app{name: "client"}, app{name: "server", replicas: 3})
	outside.deploy(app{name: "client"})
	from := outside.in("client")
	in := func(mode string) {
		s.apply("MeshPolicy", "mode", "selector: {matchLabels: {app: server}}\nmtls: {mode: "+mode+"}")
	}

	outside.callUntil(from, answered(200), "http", s.url("server"))
	var moves int
	s.underLoad(s.in("client"), s.everyForm(), func() {
		time.Sleep(2 * time.Second) // the load has begun
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); moves++ {
			in("Strict")
			outside.callUntil(from, fails("reset", "eof"), "http", s.url("server"))
			in("Permissive")
			outside.callUntil(from, answered(200), "http", s.url("server"))
		}
		// One port after the other, as one who is careful does, and then all.
		s.apply("MeshPolicy", "mode", "selector: {matchLabels: {app: server}}\nmtls: {mode: Permissive, ports: [{port: 8080, mode: Strict}]}")
		outside.callUntil(from, fails("reset", "eof"), "http", s.url("server"))
		outside.callUntil(from, works, "tcp", s.host("server")+":9001")
		in("Strict")
		outside.callUntil(from, fails("reset", "eof"), "tcp", s.host("server")+":9001")
		time.Sleep(2 * time.Second) // and goes on a while
	})
	figure(t, "%d moves to Strict and back, and one port by port", moves)
	if moves == 0 {
		t.Error("there was no move while the load went on")
	}
}
