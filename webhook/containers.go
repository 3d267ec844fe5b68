package webhook

import (
	"errors"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tulle-mesh/tulle/xds/bootstrap"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

const (
	// drainSeconds bounds how long a connection goes on under configuration
	// that was replaced, and so how long a policy that refuses it can be late.
	drainSeconds = int(mesh.DrainTime / time.Second)
	// startupPatience is how many seconds a sidecar may take until the control
	// plane has sent it everything, before the kubelet starts it anew. Long,
	// because a new start helps nothing while the control plane is away.
	startupPatience = 600
	probeTimeout    = 3
	// readyPeriod is how often, in seconds, a gateway is asked whether it is ready.
	readyPeriod = 2
)

// Proxy returns stock Envoy as the only container of a pod, that of a gateway,
// with the volumes that it mounts. The pod's annotations about the proxy, and about
// its sleep before its end, count as they do for an injected pod; else its name and
// its grace period are read, and as whom its containers run. It is not changed.
//
// An error is a refusal: the sentence says what to write instead.
func Proxy(pod *corev1.Pod, s Settings) (corev1.Container, []corev1.Volume, error) {
	if s.ProxyImage == "" {
		return corev1.Container{}, nil, errors.New("the control plane was started without an image for tulle-proxy")
	}
	o, err := overridesOf(pod, s)
	if err != nil {
		return corev1.Container{}, nil, err
	}
	user, err := proxyUser(pod)
	if err != nil {
		return corev1.Container{}, nil, err
	}
	proxy, err := proxyContainer(s, o, user)
	if err != nil {
		return corev1.Container{}, nil, err
	}
	proxy.ReadinessProbe = &corev1.Probe{
		ProbeHandler:   proxy.StartupProbe.ProbeHandler,
		PeriodSeconds:  readyPeriod,
		TimeoutSeconds: probeTimeout,
	}
	if n := o.preStopSleep; n > 0 {
		proxy.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: n}}}
	}
	return proxy, volumes(), nil
}

// proxyContainer is stock Envoy, in any kind of pod.
func proxyContainer(s Settings, o overrides, user int64) (corev1.Container, error) {
	config, err := proxyBootstrap(s.Revision)
	if err != nil {
		return corev1.Container{}, err
	}
	return corev1.Container{
		Name:            ContainerProxy,
		Image:           s.ProxyImage,
		ImagePullPolicy: corev1.PullIfNotPresent,
		Command:         []string{"/usr/local/bin/envoy"},
		Args: []string{
			"--log-level", o.logLevel,
			"--concurrency", strconv.FormatInt(o.concurrency, 10),
			"--drain-time-s", strconv.Itoa(drainSeconds),
			// Tell clients at once that a replaced listener's connections are
			// to be closed, not with a chance that grows over the drain time.
			"--drain-strategy", "immediate",
			// The access log is read as it happens; by default Envoy keeps lines
			// for ten seconds.
			"--file-flush-interval-msec", "1000",
			// A container is replaced, never restarted in place.
			"--disable-hot-restart",
			"--config-yaml", config,
		},
		Env: []corev1.EnvVar{
			fieldEnv("POD_NAME", "metadata.name"),
			fieldEnv("POD_NAMESPACE", "metadata.namespace"),
			fieldEnv("SERVICE_ACCOUNT", "spec.serviceAccountName"),
		},
		Ports: []corev1.ContainerPort{
			{Name: "tulle-metrics", ContainerPort: portStats, Protocol: corev1.ProtocolTCP},
		},
		// Passes when the control plane has sent the readiness listener, which
		// is after the traffic listeners were acknowledged.
		StartupProbe: &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
				Path:   "/ready",
				Port:   intstr.FromInt32(portReady),
				Scheme: corev1.URISchemeHTTP,
			}},
			PeriodSeconds:    1,
			TimeoutSeconds:   probeTimeout,
			SuccessThreshold: 1,
			FailureThreshold: startupPatience,
		},
		Resources: o.resources,
		VolumeMounts: []corev1.VolumeMount{
			{Name: volumeTrust, MountPath: trustPath, ReadOnly: true},
			{Name: volumeToken, MountPath: tokenPath, ReadOnly: true},
		},
		SecurityContext: &corev1.SecurityContext{
			RunAsUser:                new(user),
			RunAsGroup:               new(user),
			RunAsNonRoot:             new(true),
			AllowPrivilegeEscalation: new(false),
			Privileged:               new(false),
			ReadOnlyRootFilesystem:   new(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile:           runtimeDefault(),
		},
	}, nil
}

// proxyBootstrap is the same text in every pod of a revision: the kubelet puts in
// the node's name, which is not known yet while the API server makes one up.
func proxyBootstrap(revision string) (string, error) {
	o := bootstrap.Defaults()
	o.Address = ServiceOf(revision) + ".tulle-system.svc"
	o.ServerName = o.Address
	o.NodeID = "$(POD_NAME).$(POD_NAMESPACE)"
	o.NodeCluster = "$(SERVICE_ACCOUNT).$(POD_NAMESPACE)"
	o.RootsPath = trustPath + "/roots.yaml"
	o.TokenPath = trustPath + "/token.yaml"
	b, err := bootstrap.New(o)
	if err != nil {
		return "", err
	}
	raw, err := bootstrap.JSON(b)
	return string(raw), err
}

// volumes hold the roots, and the token that only the control plane accepts.
//
// The sidecar can read the token whatever the pod says: the kubelet makes it
// 0644, or with an fsGroup 0640 for that group, which every container of the
// pod is in. It would be 0600 if all containers ran as one user; tulle-init and
// tulle-proxy never do. No other container mounts it.
func volumes() []corev1.Volume {
	return []corev1.Volume{
		{
			Name: volumeTrust,
			VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
				LocalObjectReference: corev1.LocalObjectReference{Name: trustConfigMap},
				DefaultMode:          new(int32(0o644)),
			}},
		},
		{
			Name: volumeToken,
			VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				DefaultMode: new(int32(0o644)),
				Sources: []corev1.VolumeProjection{{
					ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
						Audience:          tokenAudience,
						ExpirationSeconds: new(int64(tokenSeconds)),
						Path:              tokenFile,
					},
				}},
			}},
		},
	}
}

func fieldEnv(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{
		FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path},
	}}
}

func runtimeDefault() *corev1.SeccompProfile {
	return &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
}
