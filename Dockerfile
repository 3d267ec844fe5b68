# The images of Tulle, one target each:
#
#   docker build --target tulled     -t tulled:1.0 .      the control plane
#   docker build --target tulle-init -t tulle-init:1.0 .  the redirect of a pod's traffic
#   docker build --target tulle-cni  -t tulle-cni:1.0 .   the same from the node, and its agent
#   docker build --target tulle-echo -t tulle-echo:1.0 .  the workload of the demo and the tests
#   docker build --target envoy      -t envoy:1.40.0 .    the stock Envoy, as the proxy's user
#
# `make images` builds the same without docker. Needs BuildKit, as docker has had it since 23.0.
#
# No registry is named here. GO_IMAGE and ENVOY_IMAGE are what docker finds by these names; give
# a reference of your own registry, best with a digest, to take them from there:
#
#   docker build --build-arg GO_IMAGE=REGISTRY/golang@sha256:... --target tulled .
#
# The bytes depend on the sources and on these images alone: paths are trimmed, no version
# control stamp goes in, and SOURCE_DATE_EPOCH is the time of everything. For identical digests
# have the exporter write that time, too: --output type=oci,dest=tulled.tar,rewrite-timestamp=true
ARG GO_IMAGE=golang:1.26
ARG ENVOY_IMAGE=envoyproxy/envoy:distroless-v1.40.0
# What programs are put on: by default the stage `distroless` below. Another base can be given,
# such as a published static distroless image: it needs nothing but users and CA certificates.
ARG BASE_IMAGE=distroless
ARG SOURCE_DATE_EPOCH=0

# Compiles for the target's architecture on the builder's own: no emulation.
FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS build
ARG TARGETOS=linux
ARG TARGETARCH
ARG VERSION=dev
ENV CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false -tags=grpcnotrace"
WORKDIR /src
# The modules change seldom: keep their layer apart from the sources.
COPY go.mod go.sum ./
COPY e2e/go.mod e2e/go.sum e2e/
RUN go mod download && go -C e2e mod download
COPY . .
RUN GOOS=$TARGETOS GOARCH=$TARGETARCH go build -ldflags="-s -w -X main.version=$VERSION" \
      -o /out/ ./cmd/tulled ./cmd/tulle-init ./cmd/tulle-cni && \
    GOOS=$TARGETOS GOARCH=$TARGETARCH go -C e2e build -ldflags="-s -w -X main.version=$VERSION" \
      -o /out/tulle-echo ./echo
RUN printf '%s\n' \
      'root:x:0:0:root:/:/sbin/nologin' \
      'tulle-proxy:x:1337:1337:tulle-proxy:/:/sbin/nologin' \
      'nonroot:x:65532:65532:nonroot:/:/sbin/nologin' > /out/passwd && \
    printf '%s\n' 'root:x:0:' 'tulle-proxy:x:1337:' 'nonroot:x:65532:' > /out/group && \
    mkdir -m 1777 /out/tmp

# No shell, no package manager, no C library: users, CA certificates and /tmp.
FROM scratch AS distroless
COPY --from=build /out/passwd /out/group /etc/
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/tmp /tmp

FROM ${BASE_IMAGE} AS tulle-echo
COPY --from=build /out/tulle-echo /tulle-echo
USER 65532:65532
ENTRYPOINT ["/tulle-echo"]

# The init container of a pod is given root and NET_ADMIN by the pod's spec, for as long as it runs.
FROM ${BASE_IMAGE} AS tulle-init
COPY --from=build /out/tulle-init /tulle-init
USER 65532:65532
ENTRYPOINT ["/tulle-init"]

# The agent is root by its pod's spec; it installs its own program as the plugin.
FROM ${BASE_IMAGE} AS tulle-cni
COPY --from=build /out/tulle-cni /tulle-cni
USER 65532:65532
ENTRYPOINT ["/tulle-cni"]

FROM ${ENVOY_IMAGE} AS envoy
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/envoy"]

# The last target is the one that is built when none is named.
FROM ${BASE_IMAGE} AS tulled
COPY --from=build /out/tulled /tulled
USER 65532:65532
ENTRYPOINT ["/tulled"]
