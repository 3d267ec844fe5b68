package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Certificates are those of workloads.
type Certificates struct {
	// lifetime of a workload's certificate, from 1m to 720h; it is renewed at
	// half of that.
	// +optional
	// +kubebuilder:default="24h"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1m') && duration(self) <= duration('720h')",message="a certificate lives for 1m at least and 720h (30 days) at most: write 24h"
	Lifetime *metav1.Duration `json:"lifetime,omitempty"`
}

// CertificateAuthority is the built-in authority: a root, and an issuer under it
// that signs the certificates of workloads. Where the Secret tulle-ca-issuer
// brings an issuer, that one signs, and what is said here does not hold.
type CertificateAuthority struct {
	// issuer is the intermediate that signs the certificates of workloads; it
	// lives for 8760h (a year) by default.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.lifetime) || duration(self.lifetime) >= duration('1h') && duration(self.lifetime) <= duration('87600h')",message="an issuer lives for 1h at least and 87600h (10 years) at most: write 8760h"
	Issuer AuthorityCertificate `json:"issuer,omitzero"`

	// root is what everybody trusts; it lives for 87600h (10 years) by default.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.lifetime) || duration(self.lifetime) >= duration('24h') && duration(self.lifetime) <= duration('175200h')",message="a root lives for 24h at least and 175200h (20 years) at most: write 87600h"
	Root AuthorityCertificate `json:"root,omitzero"`

	// certManager has an issuer of cert-manager sign in place of a root of the mesh's
	// own. The mesh goes over step by step, and so it does back where it is removed.
	// +optional
	CertManager *CertManager `json:"certManager,omitempty"`
}

// CertManagerSigns is what an issuer of cert-manager signs.
//
// +kubebuilder:validation:Enum=Intermediate;Leaves
type CertManagerSigns string

const (
	// CertManagerIntermediate has it sign an intermediate, with which the control
	// plane signs the certificates of workloads.
	CertManagerIntermediate CertManagerSigns = "Intermediate"
	// CertManagerLeaves has it sign the certificate of each workload.
	CertManagerLeaves CertManagerSigns = "Leaves"
)

// CertManager is an issuer of cert-manager that signs for the mesh. Requests
// (CertificateRequests) and an Issuer are in the control plane's own namespace.
type CertManager struct {
	// issuerRef is the issuer. The mesh trusts its root: whoever may have a certificate
	// of any name signed under it can be anybody. A ClusterIssuer answers requests of
	// all namespaces; name one only where an approver decides who asks for what.
	// +required
	IssuerRef IssuerReference `json:"issuerRef"`

	// signs: an Intermediate, whose key stays in the cluster and which makes
	// certificates at once, or all Leaves, each by a CertificateRequest, for which a
	// new workload waits. A SelfSigned issuer signs no Leaves.
	// +optional
	// +kubebuilder:default=Intermediate
	Signs CertManagerSigns `json:"signs,omitempty"`

	// roots are the root certificates that the issuer's certificates lead to, in PEM.
	// Without it they are those that cert-manager names in the answer, which issuers
	// that do not know their root leave out.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=65536
	// +kubebuilder:validation:XValidation:rule="self.contains('-----BEGIN CERTIFICATE-----') && !self.contains('PRIVATE KEY')",message="roots are certificates in PEM, and no keys: write those of the issuer's roots, each from -----BEGIN CERTIFICATE----- on, or leave it out"
	Roots string `json:"roots,omitempty"`
}

// IssuerReference refers to an issuer of cert-manager, or to one of another group
// that answers CertificateRequests.
//
// +kubebuilder:validation:XValidation:rule="self.group != 'cert-manager.io' || self.kind in ['Issuer', 'ClusterIssuer']",message="cert-manager.io has the kinds Issuer and ClusterIssuer: write one of these, or the group of an external issuer"
type IssuerReference struct {
	// name of the issuer.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",message="name is that of an Issuer or ClusterIssuer: write it without a namespace, in lower-case letters, digits, '-' and '.'"
	Name string `json:"name"`

	// kind of the issuer: Issuer (in the control plane's namespace), ClusterIssuer, or
	// an external issuer's kind.
	// +optional
	// +kubebuilder:default=Issuer
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Z][A-Za-z0-9]*$')",message="kind begins with a capital letter: write Issuer or ClusterIssuer, or an external issuer's kind"
	Kind string `json:"kind,omitempty"`

	// group of the issuer's kind.
	// +optional
	// +kubebuilder:default="cert-manager.io"
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",message="group has no version: write cert-manager.io, or an external issuer's group"
	Group string `json:"group,omitempty"`
}

// RotationMode says who begins a rotation.
//
// +kubebuilder:validation:Enum=Automatic;Manual
type RotationMode string

const (
	// RotationAutomatic has it begin before the end, and when it is asked for.
	RotationAutomatic RotationMode = "Automatic"
	// RotationManual has it begin only when it is asked for.
	RotationManual RotationMode = "Manual"
)

// AuthorityCertificate is how long a certificate of the authority lives, and when
// it is rotated.
//
// +kubebuilder:validation:XValidation:rule="!has(self.renewBeforePercentage) || self.rotation == 'Automatic'",message="renewBeforePercentage is when an automatic rotation begins: leave it out, or write rotation: Automatic"
type AuthorityCertificate struct {
	// lifetime of those that are made from now on.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,6}(h|m|s|ms)){1,4}$`
	Lifetime *metav1.Duration `json:"lifetime,omitempty"`

	// rotation: Automatic begins before the end of its life, Manual when it is
	// asked for with "tulle ca rotate".
	// +optional
	// +kubebuilder:default=Automatic
	Rotation RotationMode `json:"rotation,omitempty"`

	// renewBeforePercentage is how much of its life is left, in percent, when an
	// automatic rotation begins; a third by default.
	// +optional
	// +kubebuilder:validation:Minimum=5
	// +kubebuilder:validation:Maximum=95
	RenewBeforePercentage *int32 `json:"renewBeforePercentage,omitempty"`
}
