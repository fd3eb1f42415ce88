-- Chooses the engine of each request for a service without a router, and counts what is on each engine.
--
-- Which engines there are is in a file that the daemon replaces: `RUN_DIR/endpoints/SLOT` is a symbolic link to it, and
-- each line begins with a bridge's port. A number in shared memory tells that something has changed. So a change counts
-- from the next request on, and neither a reload nor another nginx changes anything.
--
-- The counts are in a file that all workers and the daemon have mapped: a row for each worker, four numbers for each
-- port. Only its worker writes to a row, so nothing is locked and nothing gets lost. A worker holds a lock on its row's
-- number, which ends with the worker, however that ends: so nobody counts what a killed worker had in flight.

local balancer = require "ngx.balancer"
local ffi = require "ffi"
local C = ffi.C

ffi.cdef [[
int open(const char *path, int flags, ...);
int fcntl(int fd, int command, ...);
void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset);
long readlink(const char *path, char *target, size_t size);
struct gateway_lock { short type; short whence; long start; long length; int pid; };
]]

local O_RDWR_CLOEXEC, F_SETLK, F_WRLCK, READ_WRITE, SHARED = 0x80002, 6, 1, 3, 1
local IN_FLIGHT, REQUESTS, FLOWS = 0, 1, 2
local FIELDS = 4
local HEADER = 512 -- numbers before the first row
local ROWS_USED, CHANGES = 0, 1 -- two of them: the daemon counts its changes of engines
local LOOK_S = 1 -- and without any of them each list is looked at as often: the file may be another than the daemon's
-- How many engines are compared at the most, from one at random on. The first without a request is taken at once.
local MOST_COMPARED = 16
-- Engines that are tried one after the other, if they take no connection.
local MOST_TRIES = 8
local LONGEST = 512
local BUSY = -3 -- NGX_BUSY: nginx ends the request with 502, and tries nobody else

local balance = {}
local all, mine, row, row_size, first_port
local target = ffi.new("char[?]", LONGEST)
local known = {}

-- Maps the counts and takes a row, at the start of each worker.
function balance.begin(path, first, ports, rows)
    math.randomseed(ngx.worker.pid() * 1000 + ngx.now() % 1000)
    row_size, first_port = ports * FIELDS, first
    local size = 8 * (HEADER + rows * row_size)
    local fd = C.open(path, O_RDWR_CLOEXEC)
    local mapped = fd >= 0 and C.mmap(nil, size, READ_WRITE, SHARED, fd, 0)
    if not mapped or ffi.cast("intptr_t", mapped) == -1 then
        return ngx.log(ngx.ERR, "cannot use ", path, ": nothing is balanced")
    end
    all = ffi.cast("double *", mapped)
    local lock = ffi.new("struct gateway_lock", {F_WRLCK, 0, 0, 1, 0})
    row = rows - 1 -- That of all who find no other: they may count a little wrongly.
    for number = 0, rows - 2 do
        lock.start = number
        if C.fcntl(fd, F_SETLK, lock) == 0 then
            row = number
            break
        end
    end
    mine = all + HEADER + row * row_size
    if row < rows - 1 then -- What was in flight at an earlier worker is not any more; what it has counted counts.
        for at = IN_FLIGHT, row_size - 1, FIELDS do mine[at] = 0 end
    end
end

-- Where a port's numbers are in a row; a port is known by its text.
local offsets = setmetatable({}, {__index = function(self, port)
    self[port] = (tonumber(port) - first_port) * FIELDS
    return self[port]
end})

-- The engines of a slot: `port`, where its numbers are (`offset`), and where nginx connects to (`peer`).
local function engines(slot)
    local seen = known[slot]
    if seen and seen.changes == all[CHANGES] and ngx.now() < seen.look_at then return seen end
    local changes = all[CHANGES]
    local size = tonumber(C.readlink(slot, target, LONGEST))
    local name = size > 0 and size < LONGEST and ffi.string(target, size) or nil
    local file = name and not (seen and seen.name == name) and io.open(string.match(slot, "^.*/") .. name, "r")
    if not file then
        -- It is the same; or it has just been replaced again, or is away: then what was known stays.
        if seen and seen.name == name then seen.changes, seen.look_at = changes, ngx.now() + LOOK_S end
        return seen or {}
    end
    local fresh = {name = name, changes = changes, look_at = ngx.now() + LOOK_S}
    local links = string.match(slot, "^(.*)/[^/]*/") .. "/bridges/"
    local last -- Names of one engine stand together.
    for line in file:lines() do
        local port = string.match(line, "^%d+")
        if port and port ~= last then
            fresh[#fresh + 1] = {port = port, offset = offsets[port], peer = "unix:" .. links .. port .. ".sock"}
            last = port
        end
    end
    file:close()
    known[slot] = fresh
    return fresh
end

local function load_of(engine)
    local at, load = HEADER + engine.offset, 0
    for _ = 1, all[ROWS_USED] do
        load = load + all[at + IN_FLIGHT]
        at = at + row_size
    end
    return load
end

-- The engine with the fewest requests, of those that were not tried; nil if there is none.
local function least(found, tried)
    local count, best, fewest = #found, nil, math.huge
    local from = math.random(count)
    for step = 0, count - 1 do
        if step >= MOST_COMPARED and best then break end
        local engine = found[(from + step - 1) % count + 1]
        if not tried or not tried[engine.port] then
            local load = load_of(engine)
            if load <= 0 then return engine end
            if load < fewest then best, fewest = engine, load end
        end
    end
    return best
end

-- The last try's connection, as nginx says it: `-` if there was none.
local function was_connected()
    return string.match(ngx.var.upstream_connect_time or "", "([%d.-]+)[ ,:]*$") ~= "-"
end

-- The request is with no engine any more: it failed there, or is over.
local function leave(var, on)
    if on ~= "" then
        local at = offsets[on] + IN_FLIGHT
        mine[at] = mine[at] - 1
        var.gateway_engine = ""
    end
end

-- Before nginx asks the daemon to wait: the engine that it had, if any, has failed.
function balance.failed()
    local var = ngx.var
    local on = var.gateway_engine
    if on ~= "" then
        if was_connected() then var.gateway_failed = on end
        leave(var, on)
    end
end

-- For each try of each request. What an engine had is sent to no other: the daemon decides about that.
function balance.choose(slot)
    local var = ngx.var
    if not all then return ngx.exit(BUSY) end
    if all[ROWS_USED] <= row then all[ROWS_USED] = row + 1 end
    local tried
    if balancer.get_last_failure() then
        local on = var.gateway_engine
        if was_connected() then
            balance.failed()
            return ngx.exit(BUSY)
        end
        leave(var, on)
        tried = ngx.ctx.tried or {}
        tried[on], ngx.ctx.tried = true, tried
    end
    local found = engines(slot)
    local count = #found
    local engine = count > 0 and least(found, tried)
    if not engine then return ngx.exit(BUSY) end
    if not tried and count > 1 then balancer.set_more_tries(math.min(count, MOST_TRIES) - 1) end
    local at = engine.offset
    mine[at + IN_FLIGHT] = mine[at + IN_FLIGHT] + 1
    mine[at + REQUESTS] = mine[at + REQUESTS] + 1
    var.gateway_engine = engine.port
    balancer.set_current_peer(engine.peer)
end

-- A piece of an answer passes: its engine works, whatever it says of its health.
function balance.flows()
    local on = ngx.var.gateway_engine
    if on ~= "" then
        local at = offsets[on] + FLOWS
        mine[at] = mine[at] + 1
    end
end

-- The request is over; its engine stays named in the log. Where `judged`, an error that the engine answers is told as
-- a request that failed there: of an application it says nothing about the other pages. Returns the engine, if any.
function balance.over(judged)
    local on = ngx.var.gateway_engine
    if on ~= "" then
        if judged and ngx.status >= 500 then ngx.var.gateway_failed = on end
        local at = offsets[on] + IN_FLIGHT
        mine[at] = mine[at] - 1
    end
    return on
end

return balance
