// Package ca is the mesh's certificate authority: who a workload is, and the
// certificates that prove it.
//
// In: identities that xds/server has authenticated, and the authority's own
// keys from a [Store] that all replicas share (ca/secret keeps them in a
// Kubernetes Secret). Out: short-lived certificates for proxies and for the
// control plane's own servers, and the roots that everybody verifies them by.
// Next: xds/build asks [Certificates] for what a proxy subscribes to;
// controllers/trust spreads the roots.
//
// An [Issuer] signs leaves; [Authority] is the one that the mesh has. [Certificates]
// is the same for every issuer: it caches, renews at half of a certificate's life,
// and never hands out an expired one. An Authority signs with an intermediate, under
// a root of its own or one that a [Signer] has signed, or has the Signer sign each
// leaf; a [Remote] asks Signers (ca/certmanager does). A
// [Rotator] replaces issuer and roots, on one replica, in steps that nobody is
// refused in; the others follow the store. Time and randomness are injected, and the
// only input and output are an issuer's and its store's.
//
// All comparisons of time are of the wall clock, which is what certificates are
// written in, and they are made often rather than once: a clock that jumps or a
// node that was suspended is noticed at the next tick or the next request.
package ca
