// Package acks is what proxies have acknowledged of the objects of the API, as
// data: what one replica of the control plane can say ([Report]), and what all
// of them say together ([Merge]).
//
// In: reports, which xds/server makes from its streams and controllers/replicas
// brings to the leader. Out: one [Verdict] for each object. Next:
// controllers/status writes it.
//
// A proxy is concerned by an object if the object had a part in something that
// the proxy holds, or in what it holds instead because it has not taken the
// newest yet. It runs the object's present generation if everything of that
// kind that it holds was built when the mesh had that generation, or is the
// same. Pods are counted, not streams: one whose proxy is frozen or cut off
// stays concerned, and what it runs is what it acknowledged last. Pods whose
// proxy has not started yet carry no traffic, and are not counted.
package acks
