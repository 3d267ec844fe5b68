// Command bench measures a control plane: what a change in Kubernetes costs it,
// and when the proxies have it.
//
//	bench [flags]                 runs the works against one control plane or several
//	bench compare A.json B.json   puts the results of two runs side by side
//
// What comes in: the programs etcd and kube-apiserver (KUBE), a control plane's
// program (TULLED, ISTIOD), and how large the mesh is. A real API server is
// filled with Services, EndpointSlices and bound pods; simulated sidecars
// authenticate as their pods, speak incremental ADS and acknowledge at once;
// then one work after the other is done and watched. What goes out: a table, and
// JSON.
//
// world.go is what there is in the API server, plane.go and the files named after
// them the control planes, sidecar.go and board.go the proxies and what they wait
// for, works.go what is done, measure.go processes and figures, report.go and
// compare.go what is told.
package main
