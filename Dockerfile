# A gateway in a container: docker build -t customvpn .
# See docs/operations.md, "In a container", for what it needs to run.
FROM node:26-bookworm-slim AS build
WORKDIR /build
COPY package.json package-lock.json .npmrc ./
RUN npm ci
COPY . .
RUN npm run package -- deb --out /out

FROM debian:12-slim
COPY --from=build /out/*.deb /tmp/
RUN apt-get update \
  && apt-get install -y --no-install-recommends /tmp/*.deb ca-certificates procps \
  && rm -rf /tmp/*.deb /var/lib/apt/lists/*
VOLUME /var/lib/customvpn
EXPOSE 443/tcp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["customvpn", "server", "status", "--json"]
ENTRYPOINT ["customvpn"]
CMD ["server", "run"]
