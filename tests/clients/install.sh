# Sourced by tests/integration/{clients,page}.sh from the repository's root: the packages of the lock file, once.
clients=tests/clients
if ! cmp -s $clients/package-lock.json $clients/node_modules/.lock; then
    (cd $clients && npm ci --no-progress --silent >/dev/null 2>&1) && cp $clients/package-lock.json $clients/node_modules/.lock
fi
