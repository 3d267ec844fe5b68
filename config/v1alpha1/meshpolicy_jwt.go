package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// JWT says whose tokens (RFC 7519) the selected workloads believe. A request whose token
// is not valid is refused: 401, or 403 for another audience. One without a token passes,
// unless it is refused by a rule of authorization that asks for one, with 401. The section is taken as a whole: the
// workload's policy is used, or else the namespace's, or the mesh's, and of equals the
// oldest.
//
// +kubebuilder:validation:XValidation:rule="self.issuers.all(i, self.issuers.exists_one(j, j.issuer == i.issuer))",message="an issuer stands in the list once: write its audiences and places in one entry"
type JWT struct {
	// issuers are who makes the tokens.
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Issuers []JWTIssuer `json:"issuers"`
}

// JWTIssuer is one who makes tokens.
//
// +kubebuilder:validation:XValidation:rule="!has(self.fromCookies) || !has(self.forward) || self.forward",message="a token is not taken out of a cookie: leave forward out, or have the token in a header"
type JWTIssuer struct {
	// issuer is the claim iss of its tokens, to the letter, such as
	// https://accounts.example.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Issuer string `json:"issuer"`

	// audiences, one of which must be in the claim aud. Without it a token may be for
	// anybody.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	Audiences []string `json:"audiences,omitempty"`

	// jwks says where the issuer's public keys are.
	// +required
	JWKS JWKS `json:"jwks"`

	// fromHeaders are headers that have the token. Where neither fromHeaders,
	// fromParams nor fromCookies is written, it is in "Authorization: Bearer".
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=4
	FromHeaders []JWTHeader `json:"fromHeaders,omitempty"`

	// fromParams are parameters of the query that have the token.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=4
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:items:Pattern=`^[A-Za-z0-9._~-]+$`
	FromParams []string `json:"fromParams,omitempty"`

	// fromCookies are cookies that have the token.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=4
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:items:Pattern=`^[A-Za-z0-9._~-]+$`
	FromCookies []string `json:"fromCookies,omitempty"`

	// claimsToHeaders are claims that the application gets in headers. What a client
	// sends under their names never reaches it.
	// +optional
	// +listType=map
	// +listMapKey=header
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	ClaimsToHeaders []ClaimToHeader `json:"claimsToHeaders,omitempty"`

	// clockSkew is how far the issuer's clock may be off, in whole seconds: 60s by
	// default, 1s to 10m.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('10m')",message="clockSkew is 1s to 10m: write 60s"
	ClockSkew *metav1.Duration `json:"clockSkew,omitempty"`

	// forward says whether the application gets the token; true by default.
	// +optional
	// +kubebuilder:default=true
	Forward *bool `json:"forward,omitempty"`
}

// JWKS says where the public keys of an issuer are: a JSON Web Key Set (RFC 7517) with
// RSA keys of 2048 to 4096 bits, EC or Ed25519 keys. Symmetric keys are left out.
//
// +kubebuilder:validation:XValidation:rule="[has(self.inline), has(self.configMapKey), has(self.secretKey), has(self.uri)].filter(x, x).size() == 1",message="the keys are in one place: write inline, configMapKey, secretKey or uri"
type JWKS struct {
	// inline is the key set itself, in JSON.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32768
	Inline string `json:"inline,omitempty"`

	// configMapKey is a key of the ConfigMap tulle-jwks in the policy's namespace,
	// under which the key set is. Tulle reads no ConfigMap of another name.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[-._a-zA-Z0-9]+$`
	// +kubebuilder:validation:XValidation:rule="!self.startsWith('fetched.')",message="keys that begin with fetched. are Tulle's own: write another"
	ConfigMapKey string `json:"configMapKey,omitempty"`

	// secretKey is a key of the Secret tulle-jwks in the policy's namespace, under which the
	// key set is. It has public keys alone: with anything private in it the key set is
	// refused. Tulle reads no Secret of another name for it.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[-._a-zA-Z0-9]+$`
	SecretKey string `json:"secretKey,omitempty"`

	// uri is where the control plane fetches the key set, such as
	// https://accounts.example/keys. Addresses that are not public need a word in the
	// MeshConfig (jwks.allowedRanges), as does http (jwks.allowHTTP).
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:XValidation:rule="self.startsWith('https://') || self.startsWith('http://')",message="the keys are fetched over HTTP: write https://accounts.example/keys"
	// +kubebuilder:validation:XValidation:rule="!self.contains('@') && !self.contains('#')",message="a uri of keys has no user and no fragment: leave out '@' or '#', and what belongs to it"
	URI string `json:"uri,omitempty"`
}

// JWTHeader is a header that has a token.
type JWTHeader struct {
	// name of the header, in any case.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9]+(-[A-Za-z0-9]+){0,5}$`
	Name string `json:"name"`

	// prefix before the token, such as "Bearer " with its blank; none by default.
	// +optional
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^[ -~]*$`
	Prefix string `json:"prefix,omitempty"`
}

// ClaimToHeader is a header that the application gets a claim in.
type ClaimToHeader struct {
	// header that the claim is in, in any case. A text, number or bool is as it is; a
	// list or object is JSON in base64.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9]+(-[A-Za-z0-9]+){0,5}$`
	Header string `json:"header"`

	// claim of the token, with dots for what is nested: sub, or realm.role.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Claim string `json:"claim"`
}

// ClaimCondition matches a request by a claim of its valid token. A claim that is a list
// has each of its members as a value, and so have scope and scp each word.
//
// +kubebuilder:validation:XValidation:rule="has(self.values) || has(self.notValues)",message="a claim says nothing without a value: write values, with '*' for any, or notValues"
type ClaimCondition struct {
	// path is the name of the claim, and of what is nested in it: [sub], or
	// [realm_access, roles].
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=128
	Path []string `json:"path"`

	// values, of which one must match: "a" is that value, "a*" a prefix, "*a" a suffix,
	// "*" any. Numbers and true or false match what they are, too.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=256
	Values []string `json:"values,omitempty"`

	// notValues, of which none may match. An Allow rule with them matches no request
	// without a valid token.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=256
	NotValues []string `json:"notValues,omitempty"`
}
