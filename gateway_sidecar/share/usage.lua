-- Counts what clients use: requests and tokens, by frontend, service, key and model. With `usage.ask` nginx also asks
-- engines for the tokens of streams, and hides the event that says them from clients that did not ask.
--
-- Each worker counts in a file of its own, which it has mapped and which the daemon reads: a row of numbers for each
-- combination, all of them sums since the file was made. So nothing is locked, no request waits for anybody, and what is
-- counted is there for the next daemon, however nginx or a daemon ends. A worker holds a lock on its file, which ends
-- with the worker. Another worker takes a file without a lock up as it is.
--
-- A row has its place in the file for ever. When all are taken, what is new counts as `(others)`.

local ffi = require "ffi"
local access_log = require "access_log"
local models = require "models"
local tokens = require "tokens"
local C = ffi.C

ffi.cdef [[
int open(const char *path, int flags, ...);
int close(int fd);
int flock(int fd, int operation);
int ftruncate(int fd, long length);
int posix_fallocate(int fd, long offset, long length);
long readlink(const char *path, char *target, size_t size);
void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset);
int getentropy(void *buffer, size_t length);
]]

local byte, find, match, sub = string.byte, string.find, string.match, string.sub
local O_RDWR_CREAT_CLOEXEC, EXCLUSIVE_NOW, READ_WRITE, SHARED = 0x80042, 6, 3, 1
local OPENS = 123
local CARRIAGE_RETURN, LINE_FEED, TRUE, FALSE, NULL = 13, 10, "true", "false", "null"

-- The file: numbers of 8 bytes, then names. As in nginx/usage.py.
local HEADER = 512 -- numbers before the first row
local MARK, EPOCH, ROWS_USED = 0, 1, 3 -- the mark says that the file is made; the epoch has two
local MADE = 20261129
local REQUESTS, REFUSED, FAILED, ABORTED, STREAMS, TOKENS_IN, TOKENS_OUT, UNKNOWN = 0, 1, 2, 3, 4, 5, 6, 7
local FIELDS = 8
local ROWS_AT_ONCE, NAMES_AT_ONCE = 512, 65536 -- room that is taken before it is used: a full disk ends no worker
local NAMES_EACH = 160 -- bytes, on average, that there is room for
local MOST_FILES = 1024
local SPARE_ROWS = 256 -- of the last ones, for `(others)`
local MOST_MODELS = 1000 -- of a service, whose engine may answer to any name
local OTHERS = "(others)"
local LONGEST_KEY = 255
local LONGEST_PATH, MOST_PATHS = 256, 1024

local LONGEST_EVENT = 65536 -- that may be the one with the usage
local LONGEST_OPTIONS = 4096

-- What the last word of a path is of requests that an engine is asked for work by. Others use no tokens, and do not count.
local WORKS = {}
for word in string.gmatch([[
    completions responses messages embeddings embed generate chat rerank score classify pooling interactions decisions
    systemone transcriptions translations speech generations edits variations realtime
]], "%a+") do WORKS[word] = true end

local ASKED = {["/v1/chat/completions"] = true, ["/v1/completions"] = true}

local bytes_of = ffi.typeof "const uint8_t *"
local usage = {}

-- -- the file

local numbers, names, fd, most_rows, names_size
local rows_room, names_room, names_used = 0, 0, 0
-- Frontend -> service -> key -> model -> where its row's numbers are.
local rows = {}
local known_models = {}
-- How many requests hide something, and how many of them have a piece of an answer in `ngx.ctx`.
local hiding, held = 0, 0
local target = ffi.new("char[?]", 4096)

local function is_there(path, descriptor)
    local size = tonumber(C.readlink("/proc/self/fd/" .. descriptor, target, 4096))
    return size > 0 and ffi.string(target, size) == path
end

-- A file that no other worker has; nil if there is none.
local function own_file(directory)
    for number = 0, MOST_FILES - 1 do
        local path = directory .. "/" .. number
        local descriptor = C.open(path, O_RDWR_CREAT_CLOEXEC, ffi.cast("int", 384))
        if descriptor < 0 then return nil end
        -- The daemon removes files without a worker.
        if C.flock(descriptor, EXCLUSIVE_NOW) == 0 and is_there(path, descriptor) then return descriptor end
        C.close(descriptor)
    end
    return nil
end

-- Room for one more row with a name of this length.
local function has_room(row, length)
    if row >= rows_room then
        local from = 8 * (HEADER + rows_room * FIELDS)
        local more = math.min(ROWS_AT_ONCE, most_rows - rows_room)
        if more <= 0 or C.posix_fallocate(fd, from, 8 * more * FIELDS) ~= 0 then return false end
        rows_room = rows_room + more
    end
    if names_used + length + 2 > names_room then
        local from = 8 * (HEADER + most_rows * FIELDS) + names_room
        local more = math.min(NAMES_AT_ONCE, names_size - names_room)
        if length + 2 > more or C.posix_fallocate(fd, from, more) ~= 0 then return false end
        names_room = names_room + more
    end
    return true
end

local function remember(row, frontend, service, key, model)
    local at = rows
    for _, name in ipairs {frontend, service, key} do
        at[name] = at[name] or {}
        at = at[name]
    end
    at[model] = HEADER + row * FIELDS
    return at[model]
end

-- A new row, or that of all others.
local function new_row(frontend, service, key, model)
    local row = tonumber(numbers[ROWS_USED])
    local name = table.concat({frontend, service, key, model}, "\0")
    if (key ~= OTHERS and row >= most_rows - SPARE_ROWS) or not has_room(row, #name) then
        if key == OTHERS then return remember(0, frontend, service, key, model) end
        local by_key = rows[frontend] and rows[frontend][service] and rows[frontend][service][OTHERS]
        return by_key and by_key[OTHERS] or new_row(frontend, service, OTHERS, OTHERS)
    end
    local at = names + names_used
    at[0], at[1] = #name % 256, math.floor(#name / 256)
    ffi.copy(at + 2, name, #name)
    names_used = names_used + 2 + #name
    numbers[ROWS_USED] = row + 1 -- Now it is there.
    return remember(row, frontend, service, key, model)
end

-- What an earlier worker has counted goes on.
local function take_up()
    for row = 0, tonumber(numbers[ROWS_USED]) - 1 do
        local at = names + names_used
        local length = at[0] + at[1] * 256
        local frontend, service, key, model = match(ffi.string(at + 2, length), "^(%Z*)%z(%Z*)%z(%Z*)%z(%Z*)$")
        remember(row, frontend, service, key, model)
        names_used = names_used + 2 + length
    end
    rows_room = math.ceil(numbers[ROWS_USED] / ROWS_AT_ONCE) * ROWS_AT_ONCE
    names_room = math.ceil(names_used / NAMES_AT_ONCE) * NAMES_AT_ONCE
end

-- Takes a file, at the start of each worker.
function usage.begin(directory, most)
    most_rows, names_size = most, most * NAMES_EACH
    fd = own_file(directory)
    local size = 8 * (HEADER + most * FIELDS) + names_size
    local mapped = fd and C.ftruncate(fd, size) == 0 and C.posix_fallocate(fd, 0, 8 * HEADER) == 0
        and C.mmap(nil, size, READ_WRITE, SHARED, fd, 0)
    if not mapped or ffi.cast("intptr_t", mapped) == -1 then
        return ngx.log(ngx.ERR, "cannot use ", directory, ": no usage is counted")
    end
    numbers = ffi.cast("double *", mapped)
    names = ffi.cast("uint8_t *", mapped) + 8 * (HEADER + most * FIELDS)
    if numbers[MARK] == MADE then
        take_up()
    else
        numbers[ROWS_USED] = 0
        if not has_room(0, 4 * #OTHERS + 3) or C.getentropy(numbers + EPOCH, 16) ~= 0 then
            numbers = nil
            return ngx.log(ngx.ERR, "no room in ", directory, ": no usage is counted")
        end
        new_row(OTHERS, OTHERS, OTHERS, OTHERS)
        numbers[MARK] = MADE
    end
end

-- -- at a request's end

local function is_work(path)
    local word = match(path, "(%a+)/?$")
    return word ~= nil and WORKS[word] == true
end

-- Path -> whether its requests count.
local works, paths = {}, 0

local function counts(path)
    if #path > LONGEST_PATH then return false end
    if paths > MOST_PATHS then works, paths = {}, 0 end
    works[path], paths = is_work(path), paths + 1
    return works[path]
end

-- Whether a path's requests count; it is remembered.
local function is_counted(path)
    local does_count = works[path]
    if does_count == nil then does_count = counts(path) end
    return does_count
end

-- The model as it counts. A name that nobody has answered to is none: it could be any text.
local function model_of(service, asked, answered)
    local known = known_models[service]
    if not known then
        known = {count = 0, names = {}}
        known_models[service] = known
    end
    if known.names[asked] then return asked end
    if not answered then return "" end
    if known.count >= MOST_MODELS then return OTHERS end
    known.names[asked], known.count = true, known.count + 1
    return asked
end

local function row_of(frontend, service, key, model)
    local at = rows[frontend]
    at = at and at[service]
    at = at and at[key]
    return at and at[model] or new_row(frontend, service, key, model)
end

-- Whether nobody but the hold had it.
local function only_waited(places)
    return not places or sub(places, -10) == "/hold.sock" and not find(places, ",", 1, true)
end

-- A request is over. `frontend`: whose settings it met. `shared`: whether that is an address of many services, which says
-- in variables which one and which model. `key`: the variable with the key's name, if there is one. Returns the tokens in
-- and out, if they are known.
function usage.over(frontend, shared, key)
    tokens.over()
    local var = ngx.var
    if hiding > 0 and var.gateway_hides ~= "" then
        hiding = hiding - 1
        if held > 0 and ngx.ctx.gateway_held then held = held - 1 end
    end
    local path = var.uri
    if not numbers or not path then return end
    if not is_counted(path) then return end
    local method, status = ngx.req.get_method(), ngx.status
    if method ~= "POST" and status ~= 101 then return end
    local answered = status < 400 and status >= 100
    local service, model = frontend, var.gateway_model
    if shared then
        service = var.gateway_service
        if service == "" then service, model = frontend, "" end
    elseif model ~= "" then
        model = model_of(service, model, answered)
    end
    local name = key and var[key] or ""
    if #name > LONGEST_KEY then name = sub(name, 1, LONGEST_KEY) end
    local at = row_of(frontend, service, name, model)
    numbers[at + REQUESTS] = numbers[at + REQUESTS] + 1
    if not answered then
        if status == 499 then
            numbers[at + ABORTED] = numbers[at + ABORTED] + 1
            if not only_waited(var.upstream_addr) then numbers[at + UNKNOWN] = numbers[at + UNKNOWN] + 1 end
        elseif status >= 500 or status < 100 then
            numbers[at + FAILED] = numbers[at + FAILED] + 1
        else
            numbers[at + REFUSED] = numbers[at + REFUSED] + 1
        end
        return
    end
    local kind = var.sent_http_content_type
    if kind and sub(kind, 1, 17) == "text/event-stream" then numbers[at + STREAMS] = numbers[at + STREAMS] + 1 end
    local into, out = tonumber(var.gateway_tokens_in), tonumber(var.gateway_tokens_out)
    if into then numbers[at + TOKENS_IN] = numbers[at + TOKENS_IN] + into end
    if out then numbers[at + TOKENS_OUT] = numbers[at + TOKENS_OUT] + out end
    local is_whole = var.request_completion == "OK"
    if not is_whole then numbers[at + ABORTED] = numbers[at + ABORTED] + 1 end
    if not is_whole or not (into or out) then numbers[at + UNKNOWN] = numbers[at + UNKNOWN] + 1 end
    return into, out
end

-- -- asking for the usage of streams

local after_space, members = models.after_space, models.members

-- The text of a value; nil if there is none.
local function value_of(p, place)
    return place and ffi.string(p + place[1], place[2] - place[1]) or nil
end

-- The options of a stream with the question for its usage in them; nil if they have it, or are none.
local function with_question(p, from, to)
    if to - from > LONGEST_OPTIONS then return nil end
    local found = {include_usage = false, continuous_usage_stats = false}
    local _, is_empty = members(p, from, to, found)
    if is_empty == nil then return nil end
    local text = ffi.string(p + from, to - from)
    local asks = value_of(p, found.include_usage)
    if asks ~= nil and asks ~= FALSE and asks ~= NULL then return nil end
    -- A client that does not ask for it gets it at no other event, either. The later place first: then the other stays.
    local edits = {}
    if found.continuous_usage_stats then edits[1] = {found.continuous_usage_stats, FALSE} end
    if found.include_usage then edits[#edits + 1] = {found.include_usage, TRUE} end
    table.sort(edits, function(one, other) return one[1][1] > other[1][1] end)
    for _, edit in ipairs(edits) do
        text = sub(text, 1, edit[1][1] - from) .. edit[2] .. sub(text, edit[1][2] - from + 1)
    end
    if found.include_usage then return text end
    return '{"include_usage":true' .. (is_empty and "" or ",") .. sub(text, 2)
end

-- What is to be put into a body so that its stream says its usage, and where; nil for nothing. As `models.with_body` calls
-- it.
local function question(p, n)
    local i = after_space(p, 0, n)
    if i >= n or p[i] ~= OPENS then return nil end
    local found = {stream = false, stream_options = false}
    local last = members(p, i, n, found)
    if not last or after_space(p, last + 1, n) < n or value_of(p, found.stream) ~= TRUE then return nil end
    local options = found.stream_options
    if not options then return ',"stream_options":{"include_usage":true}', last, last end
    if p[options[1]] == OPENS then
        local text = with_question(p, options[1], options[2])
        if text then return text, options[1], options[2] end
    elseif value_of(p, options) == NULL then
        return '{"include_usage":true}', options[1], options[2]
    end
    return nil
end

local function note(var, model)
    if model then var.gateway_model = access_log.shown(model) end
end

-- A request, before it goes on: its model is noted, unless it is `led`, which notes it, too. `ask`: whether its stream is
-- to say its usage. Called again for a request that has waited, it does nothing more.
function usage.arrives(ask, led)
    local var = ngx.var
    if ngx.req.get_method() ~= "POST" then
        if var.http_upgrade and not led and is_counted(var.uri) then note(var, (models.of_request(var, false))) end
        return
    end
    if hiding > 0 and var.gateway_hides ~= "" then return end
    local path = var.uri
    if not is_counted(path) then return end
    local encoding = var.http_content_encoding
    if encoding and string.lower(encoding) ~= "identity" then return end
    -- Some versions of nginx's Lua module (0.10.25, 0.10.26) raise an error over HTTP/2 without a Content-Length.
    if not pcall(ngx.req.read_body) then return end
    local body, words, from, to = ngx.req.get_body_data(), nil, nil, nil
    if not led then
        local kind = var.http_content_type
        if not body or models.is_form_type(kind) then
            note(var, (models.of_request(var, true)))
        else
            note(var, access_log.model_of(body))
        end
    end
    if not ask or not ASKED[path] then return end
    if not body then
        words, from, to = models.with_body(question)
    elseif find(body, '"stream"', 1, true) or find(body, "\\u00", 1, true) then -- A name may be spelt with escapes.
        words, from, to = question(ffi.cast(bytes_of, body), #body)
    end
    if not words then return end
    models.rewrite(from, to, words)
    var.gateway_hides, hiding = "1", hiding + 1
end

-- -- hiding what was not asked for

-- An answer's head passes: of a stream that is shortened nobody knows how long it will be.
function usage.tell()
    if hiding > 0 and ngx.var.gateway_hides == "1" then ngx.header.content_length = nil end
end

-- Whether it is the event that says the usage, and nothing else.
local function says_usage_alone(event)
    if not find(event, '"usage"', 1, true) then return false end
    local _, stop = find(event, '"choices"', 1, true)
    return stop ~= nil and match(event, "^%s*:%s*%[%s*%]", stop + 1) ~= nil and match(event, '"usage"%s*:%s*{') ~= nil
end

-- Where an event ends that begins at `from`, its empty line included; nil if it goes on.
local function event_end(text, from)
    local at = find(text, "\n", from, true)
    while at do
        local code = byte(text, at + 1)
        if code == LINE_FEED then return at + 1 end
        if code == CARRIAGE_RETURN and byte(text, at + 2) == LINE_FEED then return at + 2 end
        at = find(text, "\n", at + 1, true)
    end
    return nil
end

local function ends_an_event(text)
    if byte(text, -1) ~= LINE_FEED then return false end
    local code = byte(text, -2)
    return code == LINE_FEED or code == CARRIAGE_RETURN and byte(text, -3) == LINE_FEED
end

-- What of a stream the client gets now, and what is to be seen again with the next piece. `within`: it begins in an event
-- that is too long to be the one.
local function cut(text, within)
    local parts, from = {}, 1
    if within then
        local stop = event_end(text, 1)
        if not stop then return text, "", true end
        parts[1], from = sub(text, 1, stop), stop + 1
    end
    while true do
        local stop = event_end(text, from)
        if not stop then break end
        local event = sub(text, from, stop)
        tokens.note(event)
        if not says_usage_alone(event) then parts[#parts + 1] = event end
        from = stop + 1
    end
    if #text - from >= LONGEST_EVENT then
        parts[#parts + 1] = sub(text, from)
        return table.concat(parts), "", true
    end
    return table.concat(parts), sub(text, from), false
end

-- One piece of an answer passes.
function usage.answers()
    if hiding == 0 then return tokens.answers() end
    local var = ngx.var
    local hides = var.gateway_hides
    if hides == "" or hides == "0" then return tokens.answers() end
    local arg = ngx.arg
    local text, last = arg[1], arg[2]
    if hides == "1" then -- The first piece.
        local kind = var.sent_http_content_type
        if not kind or sub(kind, 1, 17) ~= "text/event-stream" then
            var.gateway_hides = "0"
            return tokens.answers()
        end
        hides, var.gateway_hides = "2", "2"
    end
    local ctx
    if held > 0 then
        ctx = ngx.ctx
        if ctx.gateway_held then
            text, ctx.gateway_held, held = ctx.gateway_held .. text, nil, held - 1
        end
    end
    if hides == "2" and ends_an_event(text) and not find(text, '"usage"', 1, true) then
        if ctx then arg[1] = text end
        return
    end
    local now, rest, within = cut(text, hides == "3")
    if within ~= (hides == "3") then var.gateway_hides = within and "3" or "2" end
    if rest ~= "" then
        if last then
            now = now .. rest
        else
            ngx.ctx.gateway_held, held = rest, held + 1
        end
    end
    if now ~= arg[1] then arg[1] = now end
end

usage.question, usage.cut = question, cut -- For tests.

return usage
