-- What a line of the access log says that nginx itself does not know: which model was asked for, what the answer says of
-- tokens, which replica answered, and how often the request was sent again. Nothing of a prompt is kept.
--
-- Text inside a JSON string has its quotes escaped, so `"model"` and `"prompt_tokens"`, quotes and all, are names there
-- and never a part of what somebody said.
--
-- It runs for each request, and for each piece of an answer. What most of them run is what LuaJIT compiles, which
-- patterns and `ngx.req` are not: it looks for plain text, and goes from byte to byte. `ngx.ctx` and variables, which cost
-- more than all else, are taken only if there is something to put there.

local ffi = require "ffi"
local C = ffi.C

ffi.cdef [[
long readlink(const char *path, char *target, size_t size);
]]

local byte, find, match, sub, gsub = string.byte, string.find, string.match, string.sub, string.gsub
local LONGEST_NAME = 4096
local LONGEST_MODEL = 256
local MOST_KNOWN = 4096
local MOST_DIGITS = 16
-- Of a piece of an answer that ends in mid-number, or in mid-name.
local KEPT = 128
local LINE_FEED, QUOTE, COLON, BACKSLASH, BRACE = 10, 34, 58, 92, 125
local target = ffi.new("char[?]", LONGEST_NAME)
-- Worker -> its replica's name, as of the second `known_at`: a port rests for longer before another replica has it.
local known, known_at, count = {}, 0, 0
-- How many requests have something in `ngx.ctx`.
local kept = 0

local access_log = {}

-- Where the first byte is that is no white space.
local function past_space(text, at)
    local code = byte(text, at)
    while code == 32 or code == 10 or code == 13 or code == 9 do
        at = at + 1
        code = byte(text, at)
    end
    return at
end

-- The last number of this name in a text; nil if there is none, or it may go on in the next piece.
local function last_number(text, name)
    local digits
    local _, stop = find(text, name, 1, true)
    while stop do
        local from = past_space(text, stop + 1)
        from = byte(text, from) == COLON and past_space(text, from + 1) or #text + 1
        local at, code = from, byte(text, from)
        while code and code >= 48 and code < 58 do
            at = at + 1
            code = byte(text, at)
        end
        if code and at > from and at - from < MOST_DIGITS then digits = sub(text, from, at - 1) end
        _, stop = find(text, name, stop, true)
    end
    return digits
end

-- One piece of an answer passes. What it says last of its tokens counts: streams may say it with each event.
function access_log.answers()
    local piece, arg = ngx.arg[1], ngx.arg
    local last = byte(piece, -1)
    if not last then return end
    if kept > 0 then
        local ctx = ngx.ctx
        if ctx.gateway_kept then
            piece, ctx.gateway_kept, kept = ctx.gateway_kept .. piece, nil, kept - 1
        end
    end
    if find(piece, '_tokens"', 1, true) then
        local var = ngx.var
        local tokens = last_number(piece, '"prompt_tokens"') or last_number(piece, '"input_tokens"')
        if tokens then var.gateway_tokens_in = tokens end
        tokens = last_number(piece, '"completion_tokens"') or last_number(piece, '"output_tokens"')
        if tokens then var.gateway_tokens_out = tokens end
    end
    -- An event ends with a line, and an answer in one piece with a brace.
    if last ~= LINE_FEED and last ~= BRACE and not arg[2] then
        ngx.ctx.gateway_kept, kept = sub(piece, -KEPT), kept + 1
    end
end

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

-- The value of `model` in the outermost object of a body, whatever is in it otherwise.
local function outermost_model(body)
    local depth, at = 0, 1
    while true do
        at = find(body, '["{}%[%]]', at)
        if not at then return nil end
        local mark = sub(body, at, at)
        if mark == '"' then
            local text, stop = string_at(body, at)
            if not text then return nil end
            at = stop
            if text == "model" and depth == 1 then
                local value = match(body, '^%s*:%s*()"', stop + 1)
                if value then return (string_at(body, value)) end
            end
        elseif mark == "{" or mark == "[" then
            depth = depth + 1
        else
            depth = depth - 1
        end
        at = at + 1
    end
end

-- The model that a body of JSON asks for, as it is written there; nil if it names none.
function access_log.model_of(body)
    local _, stop = find(body, '"model"', 1, true)
    if not stop then return nil end
    if find(body, '"model"', stop, true) then return outermost_model(body) end
    local colon = past_space(body, stop + 1)
    if byte(body, colon) ~= COLON then return nil end
    local value = past_space(body, colon + 1)
    return byte(body, value) == QUOTE and string_at(body, value) or nil
end

-- Text of a client's as it may stand in a line: printable ASCII, and not longer than a name is.
local function shown(text)
    local plain = #text <= LONGEST_MODEL
    for at = 1, plain and #text or 0 do
        local code = byte(text, at)
        plain = plain and code >= 32 and code < 127
    end
    return plain and text or (gsub(sub(text, 1, LONGEST_MODEL), "[^ -~]", "?"))
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

-- At a bridge, where an engine begins to answer: for a router that passes no header of it on.
function access_log.note_answer()
    local var = ngx.var
    local id = var.http_x_request_id
    if id then ngx.shared.gateway_answered:set(id, var.gateway_bridge) end
end

-- How often a request was sent again: to a router, or an engine. The waiting room is neither.
local function retries(places)
    local tries = 0
    for place in string.gmatch(places, "[^ ,]+") do
        if find(place, ":", 2, true) and sub(place, -10) ~= "/hold.sock" then tries = tries + 1 end
    end
    return tries - 1
end

-- A request is over, and about to be logged. `names`: the directory of links to replicas' names. `host`: where bridges
-- listen. `only`: the variable that is empty if the request is not logged; nil if each is. The others: variables of
-- which the first that is not empty says which engine answered.
function access_log.over(names, host, only, first, second, third)
    local var = ngx.var
    if kept > 0 and ngx.ctx.gateway_kept then kept = kept - 1 end
    if only and var[only] == "" then return end
    local places = var.upstream_addr
    if not places then return end -- nginx has answered: what was asked for nobody has read.
    local said = var[first]
    if second and (not said or said == "") then said = var[second] end
    if third and (not said or said == "") then said = var[third] end
    if not said or said == "" then
        local answered = ngx.shared.gateway_answered
        said = answered and answered:get(var.gateway_id)
    end
    if said and said ~= "" then var.gateway_replica = replica_of(said, names, host) end
    local body = var.request_body
    local model = body and access_log.model_of(body)
    if model then var.gateway_model = shown(model) end
    if find(places, " ", 1, true) then
        local again = retries(places)
        if again > 0 then var.gateway_retries = again end
    end
end

return access_log
