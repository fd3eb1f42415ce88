-- What a line of the access log says that nginx itself does not know: which model was asked for, which replica answered,
-- and how often the request was sent again. Nothing of a prompt is kept. What the answer says of tokens tokens.lua reads.
--
-- Text inside a JSON string has its quotes escaped, so `"model"`, quotes and all, is a name there and never a part of
-- what somebody said.
--
-- It runs for each request. What most of them run is what LuaJIT compiles, which
-- patterns, loops of few rounds and `ngx.req` are not: it looks for plain text. `ngx.ctx` and variables, which cost more
-- than all else, are taken only if there is something to put there.

local ffi = require "ffi"
local C = ffi.C

ffi.cdef [[
long readlink(const char *path, char *target, size_t size);
]]

local models = require "models"
local tokens = require "tokens"
local byte, find, match, sub, gsub = string.byte, string.find, string.match, string.sub, string.gsub
local LONGEST_NAME = 4096
local LONGEST_MODEL = 256
local MOST_KNOWN = 4096
local BACKSLASH = 92
local target, bytes_of = ffi.new("char[?]", LONGEST_NAME), ffi.typeof "const uint8_t *"
-- Worker -> its replica's name, as of the second `known_at`: a port rests for longer before another replica has it.
local known, known_at, count = {}, 0, 0
-- A model's name -> what is shown of it.
local shown_as, shown_count = {}, 0
-- What stands before a request's name where it is noted who answered, beside how often it failed: no name begins so.
local ANSWERED = "!"

local access_log = {answers = tokens.answers}

-- The string at `at`, where a quote begins it, without its quotes, and where it ends; nil if it does not.
local function string_at(text, at)
    local stop = at
    repeat
        stop = find(text, '"', stop + 1, true)
        if not stop then return nil end
        local escapes = 0
        while byte(text, stop - 1 - escapes) == BACKSLASH do escapes = escapes + 1 end
    until escapes % 2 == 0
    return sub(text, at + 1, stop - 1), stop
end

-- A string of JSON with its escapes undone: some clients write each `/` as `\/`.
local function unescaped(text)
    return text and models.unescaped(text) or text
end

-- The model that a body of JSON asks for; nil if it names none.
function access_log.model_of(body)
    local _, stop = find(body, '"model"', 1, true)
    if not stop then return nil end
    if find(body, '"model"', stop, true) then return (models.in_json(ffi.cast(bytes_of, body), #body)) end
    local from = find(body, '"', stop + 1, true)
    if not from then return nil end
    local between = sub(body, stop + 1, from - 1)
    if between ~= ":" and between ~= ": " and not match(between, "^%s*:%s*$") then return nil end
    local to = find(body, '"', from + 1, true)
    if not to then return nil end
    local text = sub(body, from + 1, to - 1)
    return find(text, "\\", 1, true) and unescaped(string_at(body, from)) or text
end

-- Text of a client's as it may stand in a line: printable ASCII, and not longer than a name is.
function access_log.shown(text)
    local known = shown_as[text]
    if known then return known end
    if shown_count > MOST_KNOWN then shown_as, shown_count = {}, 0 end
    local fit = gsub(sub(text, 1, LONGEST_MODEL), "[^ -~]", "?")
    if #text <= LONGEST_MODEL then shown_as[text], shown_count = fit, shown_count + 1 end
    return fit
end

-- Which replica a worker is: the daemon keeps a symbolic link for each, named by its address. `said` is that address, or
-- a URL; the port alone where nginx chose the engine by itself.
local function replica_of(said, names, host)
    local now = ngx.time()
    if now ~= known_at or count > MOST_KNOWN then known, known_at, count = {}, now, 0 end
    local name = known[said]
    if name then return name end
    local address = match(said, "^%a+://([%w.:%[%]]+)") or match(said, "^[%w.:%[%]]+$") or "?"
    if not find(address, ":", 1, true) then address = host .. ":" .. address end
    local size = tonumber(C.readlink(names .. "/" .. address, target, LONGEST_NAME))
    name = size > 0 and ffi.string(target, size) or ""
    known[said], count = name, count + 1
    return name
end

-- At a bridge, where an engine begins to answer, or fails: a router that tries another one does not say so. `named`: a
-- router passes no header on, so who answered is noted, too.
function access_log.note_try(named)
    local failed = ngx.status >= 500
    if not failed and not named then return end
    local var = ngx.var
    local id = var.http_x_request_id
    if not id then return end
    if failed then ngx.shared.gateway_tries:incr(id, 1, 0) end
    if named then ngx.shared.gateway_tries:set(ANSWERED .. id, var.gateway_bridge) end
end

-- How often a router sent a request again by itself: what failed at its engines, but for the last if that is the answer.
local function retries_of_router(id)
    local tries = ngx.shared.gateway_tries
    local failed = tries:get(id)
    if not failed then return 0 end
    tries:delete(id)
    return ngx.status >= 500 and failed - 1 or failed
end

-- How often nginx sent a request again: to a router, or an engine. The hold is neither.
local function retries_of_nginx(places)
    local tries = 0
    for place in string.gmatch(places, "[^ ,]+") do
        if find(place, ":", 2, true) and sub(place, -10) ~= "/hold.sock" then tries = tries + 1 end
    end
    return tries - 1
end

-- A request is over, and about to be logged. `names`: the directory of links to replicas' names. `host`: where bridges
-- listen. `only`: the variable that is empty if the request is not logged; nil if each is. `engine`: the port of the
-- one that nginx has chosen by itself, or nothing; nil where there is a router. `led`: whether models.lua has read which
-- model was asked for, and said it. The others: variables of which the first that is not empty says which engine a router
-- has chosen.
function access_log.over(names, host, only, engine, led, first, second)
    local var = ngx.var
    tokens.over()
    if only and var[only] == "" then return end
    local places = var.upstream_addr
    if not places then return end -- nginx has answered: what was asked for nobody has read.
    local said, again = engine, 0
    if not said or said == "" then said = var[first] end
    if second and (not said or said == "") then said = var[second] end
    if not engine then
        local id = var.gateway_id
        again = retries_of_router(id)
        if not said or said == "" then said = ngx.shared.gateway_tries:get(ANSWERED .. id) end
    end
    if said and said ~= "" then var.gateway_replica = replica_of(said, names, host) end
    local body = not led and var.request_body
    local model = body and access_log.model_of(body)
    if model then var.gateway_model = access_log.shown(model) end
    if find(places, " ", 1, true) then again = again + retries_of_nginx(places) end
    if again > 0 then var.gateway_retries = again end
end

return access_log
