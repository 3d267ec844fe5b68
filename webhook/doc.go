// Package webhook answers the API server's admission requests: it injects the
// sidecar into pods, and refuses mesh objects that the CRDs' own rules cannot
// judge.
//
// In: a pod with its namespace's labels, and [Settings] from the control plane;
// or an object of config/v1alpha1.
// Out: the pod with tulle-init and tulle-proxy ([Inject]); or what is wrong
// with the object, as field errors ([Validate]). Next: the API server.
//
// Inject and Validate are pure; [Injector] and [Validator] put them behind
// HTTP.
//
// # What an injected pod tells the rest of Tulle
//
// The label mesh.tulle.dev/proxy=sidecar, and the annotation
// mesh.tulle.dev/status with the version that injected it and the probes that
// the sidecar answers for the application (mesh.Probe). controllers/observe
// reads both the annotation and the container named tulle-proxy.
package webhook
