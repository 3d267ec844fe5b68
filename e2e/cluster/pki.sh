#!/bin/bash
# Makes what the cluster's programs prove themselves with: a CA, serving and client certificates,
# the service accounts' key, and a kubeconfig for each client. In $STATE_DIR/pki and $STATE_DIR.
set -euo pipefail
. "$(dirname "$0")/lib/env.sh"

umask 077
mkdir -p "$STATE_DIR/pki"
cd "$STATE_DIR/pki"
# OpenSSL's own configuration would add extensions of its own.
printf '[req]\ndistinguished_name = dn\n[dn]\n' > openssl.cnf

# certificate NAME SUBJECT EXTENSION... makes NAME.key and NAME.crt, signed by the CA if there is one.
certificate() {
  local name=$1 subject=$2 signer=() extension
  shift 2
  [ -e ca.crt ] && signer=(-CA ca.crt -CAkey ca.key)
  openssl req -config openssl.cnf -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 3650 \
    -subj "$subject" "${signer[@]}" $(for extension; do echo -addext "$extension"; done) \
    -keyout "$name.key" -out "$name.crt" 2> openssl.log || { cat openssl.log >&2; exit 1; }
}

server() { certificate "$1" "$2" basicConstraints=CA:FALSE keyUsage=digitalSignature extendedKeyUsage=serverAuth "subjectAltName=$3"; }
client() { certificate "$1" "$2" basicConstraints=CA:FALSE keyUsage=digitalSignature extendedKeyUsage=clientAuth; }

# client_config NAME SUBJECT FILE makes a client certificate, and a kubeconfig with it.
client_config() {
  client "$1" "$2"
  cat > "$3" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: $NODE_TAG
  cluster: {server: "$API_URL", certificate-authority-data: $(base64 -w0 ca.crt)}
users:
- name: $1
  user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}
contexts:
- name: $NODE_TAG
  context: {cluster: $NODE_TAG, user: $1}
current-context: $NODE_TAG
YAML
}

certificate ca "/CN=$NODE_TAG" basicConstraints=critical,CA:TRUE keyUsage=critical,keyCertSign,cRLSign subjectKeyIdentifier=hash

service=kubernetes.default
server apiserver /CN=kube-apiserver "DNS:kubernetes,DNS:$service,DNS:$service.svc,DNS:$service.svc.$CLUSTER_DOMAIN,DNS:localhost,IP:127.0.0.1,IP:10.96.0.1,IP:fd00:10:96::1,IP:$NODE_IP,IP:$NODE_IP6"
server kubelet-server "/O=system:nodes/CN=system:node:$NODE_NAME" "DNS:$NODE_NAME,IP:$NODE_IP,IP:$NODE_IP6"
client apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
client front-proxy /CN=front-proxy

client_config admin /O=system:masters/CN=admin "$STATE_DIR/admin.conf"
client_config controller-manager /CN=system:kube-controller-manager "$STATE_DIR/controller-manager.conf"
client_config scheduler /CN=system:kube-scheduler "$STATE_DIR/scheduler.conf"
client_config kubelet "/O=system:nodes/CN=system:node:$NODE_NAME" "$STATE_DIR/kubelet.conf"
client_config kube-proxy /CN=system:kube-proxy "$STATE_DIR/kube-proxy.conf"

openssl genrsa -out service-accounts.key 2048 2> /dev/null
openssl rsa -in service-accounts.key -pubout -out service-accounts.pub 2> /dev/null
