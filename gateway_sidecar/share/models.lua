-- One address, many services: finds the model that a request names, and leads the request to that model's service.
--
-- What is sent on is what came, byte for byte, but for the model's name where the configuration has another one for the
-- service. A body is read in one pass and never turned into Lua's values: it may be large, and only one word of it
-- counts. That word is the one which JSON parsers find: of a top-level `model` that is there twice the last, with its
-- escapes undone. (A test holds it to Python's parser.)
--
-- Whether a service has somebody is a file among the gates, which the daemon makes: `SERVICE` while its gate is closed,
-- `SERVICE.asleep` while it has no replica that could answer. `SERVICE.lost` has a file for each model without
-- replicas, named by its name's MD5: the gate is closed for these alone.

local ffi = require "ffi"
local bounds = require "bounds"
local C = ffi.C

ffi.cdef [[
int access(const char *path, int mode);
int open(const char *path, int flags, ...);
int close(int fd);
long lseek(int fd, long offset, int whence);
void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset);
int munmap(void *address, size_t size);
size_t strcspn(const char *text, const char *any);
void *memchr(const void *text, int byte, size_t size);
void *memmem(const void *text, size_t size, const void *what, size_t length);
]]

local O_RDONLY_CLOEXEC, SEEK_END, READ, ANONYMOUS, IN_PLACE = 0x80000, 2, 1, 0x22, 0x12
local SPACE, QUOTE, BACKSLASH, COMMA, COLON, OPENS, CLOSES, LIST = 32, 34, 92, 44, 58, 123, 125, 91
local LONGEST_NAME = 1024 -- bytes as sent; a configured one has 256
local LONGEST_SHOWN = 100
local MOST_SHOWN = 20
local STEP = 1048576 -- bytes that are looked at before other requests get their turn
local NEAR = 64 -- most strings are short: what is beyond is searched with memchr
local LONGEST_HEAD = 4096 -- of a part of a form
local IN_MEMORY = 262144 -- client_body_buffer_size
local NOT_SMALL = {POST = true, PUT = true, PATCH = true}

local bytes_of, chars_of = ffi.typeof "const uint8_t *", ffi.typeof "const char *"
local literal = ffi.new("uint8_t[256]") -- what numbers, true, false and null are made of
for byte in string.gmatch("+-.0123456789abcdefghijklmnopqrstuvwxyzEINTF", ".") do literal[string.byte(byte)] = 1 end

local models = {}
local addresses, gates = {}, ""

-- -- the configuration, said anew by each nginx.conf

-- An address. `default`: the service of requests that name no model, or an empty text. `way`: the location that sends
-- requests on as most of its services' routers have it; that is what its own location does, too.
function models.address(name, directory, default, way)
    gates = directory .. "/"
    addresses[name] = {named = {}, order = {}, services = {}, default = default, way = way}
end

-- A service that it leads to. `way`: the location for this one. `passes`: the variable that says whether a request's
-- path is one of that service's, or an empty text where each is.
function models.service(address, name, way, passes)
    addresses[address].services[name] = {way = way, passes = passes}
end

local newest

-- A model; `fallback` gets its requests, under the name `sent`, while none of its services has anybody.
function models.model(address, name, fallback, sent)
    local all = addresses[address]
    newest = {name = name, total = 0, fallback = fallback ~= "" and {service = fallback, sent = sent} or nil}
    all.named[name], all.order[#all.order + 1] = newest, newest
end

-- One of its services, its weight, and what the model is called there (empty: as it was sent).
function models.target(service, weight, sent)
    newest[#newest + 1] = {service = service, weight = weight, sent = sent}
    newest.total = newest.total + weight
end

-- -- answers of its own

local function quoted(text)
    text = string.gsub(text, '[%c"\\\127]', function(it) return string.format("\\u%04x", string.byte(it)) end)
    return '"' .. text .. '"'
end

local function answer(status, body)
    ngx.status = status
    ngx.print(body)
    return ngx.exit(ngx.HTTP_OK)
end

local function refuse(status, code, param, message)
    return answer(status, string.format(
        '{"error": {"message": %s, "type": "invalid_request_error", "param": %s, "code": "%s"}}',
        quoted(message), param, code
    ))
end

-- The models of an address that a request's key may use.
local function models_for(address)
    local may = bounds.models()
    if not may then return address.order end
    local order = {}
    for _, model in ipairs(address.order) do
        if may[model.name] then order[#order + 1] = model end
    end
    return order
end

-- Their names, as far as they fit into a message.
local function names_of(order)
    local names = {}
    for at = 1, math.min(#order, MOST_SHOWN) do names[at] = order[at].name or order[at] end
    local text = table.concat(names, ", ")
    local more = #order - #names
    return more > 0 and string.format("%s and %d more, which GET /v1/models lists", text, more) or text
end

-- The beginning of a name that may be anything, in whole characters of UTF-8.
local function shown(name)
    local _, _, reason = ngx.re.find(name, "^", "jou")
    if reason then name = string.gsub(name, "[\128-\255]", "?") end
    if #name <= LONGEST_SHOWN then return name end
    local last = LONGEST_SHOWN
    while last > 0 and bit.band(string.byte(name, last + 1), 0xC0) == 0x80 do last = last - 1 end
    return string.sub(name, 1, last) .. "..."
end

local function refuse_unknown(order, name)
    if #order == 0 then
        return refuse(404, "model_not_found", '"model"', string.format(
            "The model '%s' does not exist at this address, and this API key may use none there.", shown(name)
        ))
    end
    return refuse(404, "model_not_found", '"model"', string.format(
        "The model '%s' does not exist at this address. Use one of: %s.", shown(name), names_of(order)
    ))
end

local function refuse_nameless(order)
    local message = "The request names no `model`. Use one of: " .. names_of(order) .. "."
    return refuse(400, "missing_model", '"model"', message)
end

local REASONS = {
    no_json = {"The body is not valid JSON.", "invalid_json", "null"},
    no_form = {"The body is not a valid multipart form.", "invalid_form", "null"},
    no_text = {"`model` must be a text.", "invalid_model", '"model"'},
    encoded = {"A compressed body cannot be read here; send it as it is.", "unsupported_encoding", "null"},
    no_length = {"Say the body's length: send Content-Length.", "length_required", "null", 411},
    twice = {"The query names `model` more than once.", "invalid_model", '"model"'},
    unread = {},
}

local function refuse_for(reason)
    if reason == "unread" then return ngx.exit(500) end -- As nginx does about what it cannot write there.
    local message, code, param, status = unpack(REASONS[reason])
    return refuse(status or 400, code, param, message)
end

-- -- JSON

local function after_space(p, i, n)
    while i < n and p[i] <= SPACE do i = i + 1 end
    return i
end

-- Where a string ends that begins before `i`: behind its closing quote; nil if it does not end.
local function after_string(p, i, n)
    while i < n do
        local near = math.min(i + NEAR, n)
        while i < near do
            local byte = p[i]
            if byte == QUOTE then return i + 1 end
            i = i + (byte == BACKSLASH and 2 or 1)
        end
        if i >= n then return nil end
        local found = ffi.cast(bytes_of, C.memchr(p + i, QUOTE, n - i))
        if found == nil then return nil end
        local at = tonumber(found - p)
        local first = at
        while first > i and p[first - 1] == BACKSLASH do first = first - 1 end
        if (at - first) % 2 == 0 then return at + 1 end
        i = at + 1
    end
    return nil
end

-- What a byte of a list or an object does: the state after it, and how much deeper it leads. One table for all states
-- makes one short loop for LuaJIT, whatever the bytes are.
local OUTSIDE, INSIDE, ESCAPED = 0, 256, 512
local after, deeper = ffi.new("uint16_t[768]"), ffi.new("int8_t[768]")
for byte = 0, 255 do after[INSIDE + byte], after[ESCAPED + byte] = INSIDE, INSIDE end
after[OUTSIDE + QUOTE], after[INSIDE + QUOTE], after[INSIDE + BACKSLASH] = INSIDE, OUTSIDE, ESCAPED
for _, byte in ipairs {LIST, OPENS} do deeper[byte] = 1 end
for _, byte in ipairs {93, CLOSES} do deeper[byte] = -1 end

-- Where a list or an object ends that begins before `i`. What goes on for long is left to libc. Which bracket closes
-- which is the engine's to judge.
local function after_nested(p, i, n)
    local depth, state, pause = 1, OUTSIDE, i + STEP
    while i < n do
        local from, was, near = i, state, math.min(i + NEAR, n)
        while i < near do
            local at = state + p[i]
            depth, state, i = depth + deeper[at], after[at], i + 1
            if depth == 0 then return i end
        end
        if was == INSIDE and state == INSIDE and C.memchr(p + from, QUOTE, i - from) == nil then
            i = after_string(p, i, n)
            if not i then return nil end
            state = OUTSIDE
        elseif was == OUTSIDE and state == OUTSIDE and C.memchr(p + from, QUOTE, i - from) == nil then
            i = i + tonumber(C.strcspn(ffi.cast(chars_of, p + i), '"[]{}'))
        end
        if i > pause then
            ngx.sleep(0)
            pause = i + STEP
        end
    end
    return nil
end

local function after_value(p, i, n)
    if i >= n then return nil end
    local byte = p[i]
    if byte == QUOTE then return after_string(p, i + 1, n) end
    if deeper[byte] > 0 then return after_nested(p, i + 1, n) end
    local from = i
    while i < n and literal[p[i]] == 1 do i = i + 1 end
    return i > from and i or nil
end

local ESCAPES = {b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", ['"'] = '"', ["\\"] = "\\", ["/"] = "/"}

local function utf8(code)
    if code < 0x80 then return string.char(code) end
    local tail = string.char(0x80 + code % 64)
    if code < 0x800 then return string.char(0xC0 + math.floor(code / 64)) .. tail end
    tail = string.char(0x80 + math.floor(code / 64) % 64) .. tail
    if code < 0x10000 then return string.char(0xE0 + math.floor(code / 4096)) .. tail end
    return string.char(0xF0 + math.floor(code / 262144), 0x80 + math.floor(code / 4096) % 64) .. tail
end

-- What a JSON string says; nil if it says nothing.
local function unescaped(text)
    if not string.find(text, "\\", 1, true) then return text end
    local parts, at = {}, 1
    while true do
        local escape = string.find(text, "\\", at, true)
        parts[#parts + 1] = string.sub(text, at, (escape or 0) - 1)
        if not escape then return table.concat(parts) end
        local letter = string.sub(text, escape + 1, escape + 1)
        if letter == "u" then
            local code = tonumber(string.match(text, "^%x%x%x%x", escape + 2) or "", 16)
            at = escape + 6
            local low = code and code >= 0xD800 and code < 0xDC00
                and tonumber(string.match(text, "^\\u([dD][c-fC-F]%x%x)", at) or "", 16)
            if low then
                code, at = 0x10000 + (code - 0xD800) * 1024 + low - 0xDC00, at + 6
            end
            if not code then return nil end
            parts[#parts + 1] = utf8(code)
        else
            if not ESCAPES[letter] then return nil end
            parts[#parts + 1] = ESCAPES[letter]
            at = escape + 2
        end
    end
end

-- Whether the key between two quotes is `model`; one letter may take six bytes.
local function is_model(p, from, to)
    local length = to - from
    if length == 5 then return p[from] == 109 and ffi.string(p + from, 5) == "model" end
    return length > 5 and length <= 30 and C.memchr(p + from, BACKSLASH, length) ~= nil
        and unescaped(ffi.string(p + from, length)) == "model"
end

-- Where the values of some members of an object are, from the brace at `i` on: `found` has their names, and gets a
-- place for each. Returns where the object's last brace is, and whether it is empty; nil for what is no JSON.
local function members(p, i, n, found)
    i = after_space(p, i + 1, n)
    if i < n and p[i] == CLOSES then return i, true end
    while i < n and p[i] == QUOTE do
        local key = i + 1
        i = after_string(p, key, n)
        if not i then return nil end
        local length = i - 1 - key
        local name = length <= 160 and unescaped(ffi.string(p + key, length)) or ""
        i = after_space(p, i, n)
        if i >= n or p[i] ~= COLON then return nil end
        local value = after_space(p, i + 1, n)
        i = after_value(p, value, n)
        if not i then return nil end
        if found[name] ~= nil then found[name] = {value, i} end
        i = after_space(p, i, n)
        if i >= n then return nil end
        if p[i] == CLOSES then return i, false end
        if p[i] ~= COMMA then return nil end
        i = after_space(p, i + 1, n)
    end
    return nil
end

-- The top-level `model` of a JSON object: its name, and the bytes from which to which it stands, quotes included. No
-- name: why not, or nothing where there is no `model`.
local function in_json(p, n)
    local i = after_space(p, 0, n)
    if i >= n or p[i] ~= OPENS then return nil, "no_json" end
    i = after_space(p, i + 1, n)
    local from, to
    local is_empty, pause = i < n and p[i] == CLOSES, STEP
    while not is_empty do
        if i > pause then
            ngx.sleep(0)
            pause = i + STEP
        end
        if i >= n or p[i] ~= QUOTE then return nil, "no_json" end
        local key = i + 1
        i = after_string(p, key, n)
        if not i then return nil, "no_json" end
        local key_end = i - 1
        i = after_space(p, i, n)
        if i >= n or p[i] ~= COLON then return nil, "no_json" end
        i = after_space(p, i + 1, n)
        local value = i
        i = after_value(p, i, n)
        if not i then return nil, "no_json" end
        if is_model(p, key, key_end) then from, to = value, i end
        i = after_space(p, i, n)
        if i >= n then return nil, "no_json" end
        if p[i] == CLOSES then break end
        if p[i] ~= COMMA then return nil, "no_json" end
        i = after_space(p, i + 1, n)
    end
    if after_space(p, i + 1, n) < n then return nil, "no_json" end
    if not from then return nil end
    if p[from] ~= QUOTE then return nil, "no_text" end
    local length = math.min(to - from - 2, LONGEST_NAME)
    return unescaped(ffi.string(p + from + 1, length)) or "", from, to
end

-- -- multipart forms

local function find(p, from, n, text)
    while from < n do
        local size = math.min(n - from, STEP + #text)
        local found = ffi.cast(bytes_of, C.memmem(p + from, size, text, #text))
        if found ~= nil then return tonumber(found - p) end
        from = from + STEP
        if from < n then ngx.sleep(0) end
    end
    return nil
end

-- The name of a part of a form that is a field; nil for a file, and where there is none, or more than one.
local function field_of(head)
    local name
    for line in string.gmatch(head, "[^\r\n]+") do
        local said = string.match(line, "^[Cc][Oo][Nn][Tt][Ee][Nn][Tt]%-[Dd][Ii][Ss][Pp][Oo][Ss][Ii][Tt][Ii][Oo][Nn]:(.*)$")
        if said then
            if name then return nil end
            local at = string.find(said, ";", 1, true)
            while at do
                local word, value, after = string.match(said, '^;%s*([%w%*_-]+)%s*=%s*"([^"]*)"()', at)
                if not word then word, value, after = string.match(said, "^;%s*([%w%*_-]+)%s*=%s*([^;%s]*)()", at) end
                if not word then return nil end
                word = string.lower(word)
                if word == "filename" or word == "filename*" then return nil end
                if word == "name" then
                    if name then return nil end
                    name = value
                end
                at = string.find(said, ";", after, true)
            end
        end
    end
    return name
end

-- The field `model` of a form, as `in_json`; of two the last. The value has no quotes.
local function in_form(p, n, boundary)
    local mark, from, to = "--" .. boundary, nil, nil
    local at
    if n >= #mark and ffi.string(p, #mark) == mark then
        at = #mark
    else
        at = find(p, 0, n, "\r\n" .. mark)
        at = at and at + 2 + #mark
    end
    while at do
        if at + 2 <= n and ffi.string(p + at, 2) == "--" then
            if not from then return nil end
            return ffi.string(p + from, math.min(to - from, LONGEST_NAME)), from, to
        end
        local head = ffi.string(p + at, math.min(n - at, LONGEST_HEAD))
        local last = string.find(head, "\r\n\r\n", 1, true)
        if not last or not string.find(head, "^[ \t]*\r\n") then return nil, "no_form" end
        local value = at + last + 3
        -- Parsers do not agree on whether such a value is one, or a part's end.
        if n - value >= #mark and ffi.string(p + value, #mark) == mark then return nil, "no_form" end
        local next_mark = find(p, value, n, "\r\n" .. mark)
        if not next_mark then return nil, "no_form" end
        if field_of(string.sub(head, 1, last)) == "model" then from, to = value, next_mark end
        at = next_mark + 2 + #mark
    end
    return nil, "no_form"
end

-- -- bodies

local function is_mapped(address)
    return ffi.cast("intptr_t", address) ~= -1
end

-- As `with_body`, of a body that nginx keeps in a file, which is not copied into memory; nil and "unread" where that
-- cannot be: the file has no name any more if nginx had read the body before any script asked for it. LuaJIT compiles no
-- function that makes another one.
local function with_file(look, boundary)
    local path = ngx.req.get_body_file()
    if not path then return nil, "empty" end
    local fd = C.open(path, O_RDONLY_CLOEXEC)
    local size = fd >= 0 and tonumber(C.lseek(fd, 0, SEEK_END)) or 0
    -- One byte more than there is: behind the last one is a zero, as behind a text.
    local room = C.mmap(nil, size + 1, READ, ANONYMOUS, -1, 0)
    local mapped = size > 0 and is_mapped(room) and C.mmap(room, size, READ, IN_PLACE, fd, 0)
    if fd >= 0 then C.close(fd) end
    if not mapped or not is_mapped(mapped) then return nil, "unread" end
    -- Collected if the client goes while other requests have their turn.
    local held = ffi.gc(room, function(it) C.munmap(it, size + 1) end)
    local name, from, to = look(ffi.cast(bytes_of, held), size, boundary)
    ffi.gc(held, nil)
    C.munmap(held, size + 1)
    return name, from, to
end

-- Calls `look` with a body's bytes and their number.
local function with_body(look, boundary)
    local text = ngx.req.get_body_data()
    if not text then return with_file(look, boundary) end
    local name, from, to = look(ffi.cast(bytes_of, text), #text, boundary)
    return name, from, to, text -- Named after the call: else it could be collected while it is looked at.
end

-- Puts other words in the place of some bytes of the body.
local function rewrite(from, to, words)
    local text = ngx.req.get_body_data()
    if text then
        return ngx.req.set_body_data(string.sub(text, 1, from) .. words .. string.sub(text, to + 1))
    end
    local file = assert(io.open(ngx.req.get_body_file(), "rb"))
    ngx.req.init_body(IN_MEMORY)
    local left = from
    while left > 0 do
        local piece = file:read(math.min(left, STEP))
        ngx.req.append_body(piece)
        left = left - #piece
    end
    ngx.req.append_body(words)
    file:seek("set", to)
    while true do
        local piece = file:read(STEP)
        if not piece then break end
        ngx.req.append_body(piece)
    end
    file:close()
    ngx.req.finish_body()
end

-- What stands between the parts of a form; nil if it is said twice, or in a way that parsers read differently.
local function boundary_of(kind)
    local boundary
    local at = string.find(kind, ";", 1, true) or #kind + 1
    while not string.find(kind, "^%s*;?%s*$", at) do
        local word, value, after = string.match(kind, '^%s*;%s*([^%s=;"]+)="([^"\\]+)"()', at)
        if not word then word, value, after = string.match(kind, '^%s*;%s*([^%s=;"]+)=([^%s;"\\]+)()', at) end
        local is_boundary = word and string.lower(word) == "boundary"
        if not word or (is_boundary and boundary) then return nil end
        if is_boundary then boundary = value end
        at = after
    end
    return boundary
end

local JSON = "application/json"

-- Whether a content type is that of a form. Most are `JSON`; LuaJIT compiles no patterns.
local function is_form_type(kind)
    return kind and kind ~= JSON
        and string.find(kind, "^%s*[Mm][Uu][Ll][Tt][Ii][Pp][Aa][Rr][Tt]/[Ff][Oo][Rr][Mm]%-[Dd][Aa][Tt][Aa]") ~= nil
end

local function model_of_body(var)
    local encoding = var.http_content_encoding
    if encoding and string.lower(encoding) ~= "identity" then return nil, "encoded" end
    -- Some versions of nginx's Lua module (0.10.25, 0.10.26) raise an error over HTTP/2 without a Content-Length.
    if not pcall(ngx.req.read_body) then return nil, "no_length" end
    local kind = var.http_content_type
    if is_form_type(kind) then
        local boundary = boundary_of(kind)
        if not boundary then return nil, "no_form" end
        local name, from, to = with_body(in_form, boundary)
        return name, from, to, true
    end
    local name, from, to = with_body(in_json)
    return name, from, to, false
end

-- What a request without a body names in its query: a WebSocket does.
local function model_of_query(var)
    local args = var.args
    local found = args and ngx.re.match("&" .. args, "&model=([^&]+)(.*&model=)?", "jo")
    if not found then return nil end
    if found[2] then return nil, "twice" end
    return ngx.unescape_uri(found[1])
end

-- The model that a request names, and the bytes where it stands in its body; nil and a reason where it names none.
local function model_of_request(var, has_body)
    if has_body then return model_of_body(var) end
    return model_of_query(var)
end

-- -- which service

local function is_lost(directory, service, model)
    return C.access(directory .. service .. ".lost/" .. ngx.md5(model), 0) == 0
end

-- Whether a service has no replica for a model, as it is called there.
local function has_nobody(service, model)
    if C.access(gates .. service, 0) ~= 0 then return false end
    return C.access(gates .. service .. ".asleep", 0) == 0 or is_lost(gates, service, model)
end

local function called(target, asked)
    return target.sent ~= "" and target.sent or asked
end

-- By weight, evenly: steps of the golden ratio, each worker process from a place of its own. Unlike chance they give
-- each service its share of any few requests, and unlike turns they give no client that comes every second time always
-- the same service.
local GOLDEN = 0.6180339887498949
local seeded
local function draw(model, total, left_out)
    if not seeded then
        math.randomseed(ngx.worker.pid() * 1000 + ngx.now() * 1000 % 1000)
        seeded = true
    end
    model.place = ((model.place or math.random()) + GOLDEN) % 1
    local number, last = model.place * total, nil
    for at = 1, #model do
        local target = model[at]
        if target.weight > 0 and not (left_out and left_out[target.service]) then
            number, last = number - target.weight, target
            if number < 0 then break end
        end
    end
    return last
end

-- The service for a request, and the one that would have had it, had it anybody. While nobody is anywhere the request
-- waits at the first.
local function choose(model)
    local first = #model == 1 and model[1] or draw(model, model.total)
    if #model == 1 and not model.fallback then return first end
    if not has_nobody(first.service, called(first, model.name)) then return first end
    local nobody, total = {}, 0
    for at = 1, #model do
        local target = model[at]
        nobody[target.service] = has_nobody(target.service, called(target, model.name))
        if not nobody[target.service] then total = total + target.weight end
    end
    if total > 0 then return draw(model, total, nobody), first end
    local fallback = model.fallback
    if fallback and not has_nobody(fallback.service, called(fallback, model.name)) then return fallback, first end
    return first
end

-- Whether a request has to name a model if its key may use only some: nobody knows which one it would get.
local function needs_model(var, has_body)
    return has_body or var.http_upgrade
end

-- Of a list of models, as a router or an engine has it, what a key may use. Whatever else an answer says could name
-- models, too. What cannot be read shows nothing.
function models.shortened(text, may)
    local p, n, kept = ffi.cast(bytes_of, text), #text, {}
    local i, found = after_space(p, 0, n), {data = false}
    local is_read = n <= STEP and i < n and p[i] == OPENS and members(p, i, n, found) and found.data
        and p[found.data[1]] == LIST
    local last = is_read and found.data[2] - 1 or 0
    i = is_read and after_space(p, found.data[1] + 1, last) or last
    while i < last do
        local stop, named = after_value(p, i, last), {id = false}
        if not stop then break end
        if p[i] == OPENS and members(p, i, stop, named) and named.id and p[named.id[1]] == QUOTE then
            local from, to = named.id[1] + 1, named.id[2] - 1
            local name = to - from <= LONGEST_NAME and unescaped(ffi.string(p + from, to - from))
            if name and may[name] then kept[#kept + 1] = string.sub(text, i + 1, stop) end
        end
        i = after_space(p, stop, last)
        if i < last and p[i] ~= COMMA then break end
        i = after_space(p, i + 1, last)
    end
    return '{"object": "list", "data": [' .. (i >= last and table.concat(kept, ", ") or "") .. "]}"
end

-- At an address of one service: ends a request for a model that its key may not use, and leaves such models out of a
-- list.
function models.check()
    local may, var = bounds.models(), ngx.var
    if not may then return end
    local path = var.uri
    if path == "/v1/models" or string.sub(path, 1, 11) == "/v1/models/" then
        local listed = string.sub(path, 12)
        if listed == "" then
            bounds.change_answer(models.shortened)
        elseif not may[listed] then
            return refuse_unknown(may, listed)
        end
    end
    local has_body = NOT_SMALL[ngx.req.get_method()]
    local asked, reason = model_of_request(var, has_body)
    if asked then
        if not may[asked] then return refuse_unknown(may, asked) end
    elseif REASONS[reason] then
        return refuse_for(reason)
    elseif needs_model(var, has_body) then
        return refuse_nameless(may)
    end
end

-- Sends a request on to its model's service, or answers it. `shown`: what the access log shows of a model's name, if it
-- is to name it.
function models.lead(name, shown)
    local address, var = addresses[name], ngx.var
    local has_body = NOT_SMALL[ngx.req.get_method()]
    -- Where it goes from here, more may be read.
    if not has_body and var.gateway_body == "unsure" then pcall(ngx.req.read_body) end
    local asked, from, to, is_form = model_of_request(var, has_body)
    local target, diverted
    if asked and shown then var.gateway_model = shown(asked) end
    if asked then
        local model, may = address.named[asked], bounds.models()
        if not model or (may and not may[asked]) then return refuse_unknown(models_for(address), asked) end
        target, diverted = choose(model)
    elseif REASONS[from] then
        return refuse_for(from)
    elseif address.default ~= "" and not (needs_model(var, has_body) and bounds.models()) then
        target = {service = address.default, sent = ""}
    else
        return refuse_nameless(models_for(address))
    end
    local service = address.services[target.service]
    if service.passes ~= "" and var[service.passes] == "0" then return ngx.exit(596) end
    local sent = target.sent
    if sent ~= "" and sent ~= asked then
        if has_body then
            rewrite(from, to, is_form and sent or quoted(sent))
        else
            local before, after = string.match("&" .. var.args, "^(.*&model=)[^&]*(.*)$")
            ngx.req.set_uri_args(string.sub(before .. ngx.escape_uri(sent) .. after, 2))
        end
    end
    var.gateway_service = target.service
    var.gateway_back = service.way
    if diverted then var.gateway_diverted = diverted.service end
    if C.access(gates .. target.service, 0) == 0 then return ngx.exec("@hold") end
    local successor = target.service .. ".next"
    var.gateway_router = C.access(gates .. successor, 0) == 0 and successor or target.service
    if service.way ~= address.way then return ngx.exec(service.way) end
end

-- A request is about to wait for a service. If only some of its models are lost, and the request is for none of them,
-- it goes on by the location `back`. The hold is told which model it is for, if that can be read: it cannot where
-- nginx read a body of unknown length, or a large one while it was being reloaded. Such a request waits for the router
-- alone.
function models.wait(directory, service, back)
    local var = ngx.var
    if var.gateway_waits_for ~= "" then return end
    local name
    if NOT_SMALL[ngx.req.get_method()] then name = model_of_body(var) else name = model_of_query(var) end
    if name then var.gateway_waits_for = ngx.md5(name) end
    if var.upstream_addr or C.access(directory .. "/" .. service .. ".lost", 0) ~= 0 then return end
    if not name or not is_lost(directory .. "/", service, name) then return ngx.exec(back) end
end

-- -- GET /v1/models

local function entry(model, nobody)
    local asleep = not (model.fallback and not nobody(model.fallback, model.name))
    for at = 1, #model do
        if not asleep then break end
        asleep = model[at].weight == 0 or nobody(model[at], model.name)
    end
    return string.format(
        '{"id": %s, "object": "model", "created": 0, "owned_by": "gateway-sidecar"%s}',
        quoted(model.name), asleep and ', "status": "asleep"' or ""
    )
end

local function remembering()
    local is_open = {}
    return function(target, name)
        local service = target.service
        if is_open[service] == nil then is_open[service] = C.access(gates .. service, 0) ~= 0 end
        return not is_open[service] and has_nobody(service, called(target, name))
    end
end

local function only_asks()
    local method = ngx.req.get_method()
    return method == "GET" or method == "HEAD"
end

local function refuse_method()
    return refuse(405, "method_not_allowed", "null", "This method is not allowed here.")
end

-- All models of an address that the request's key may use.
function models.list(name)
    if not only_asks() then return refuse_method() end
    local nobody, found = remembering(), {}
    for at, model in ipairs(models_for(addresses[name])) do found[at] = entry(model, nobody) end
    ngx.print('{"object": "list", "data": [', table.concat(found, ", "), "]}")
end

-- The model that a path names.
function models.one(name)
    if not only_asks() then return refuse_method() end
    local address, asked = addresses[name], string.match(ngx.var.uri, "^/v1/models/(.*)$")
    local model, may = address.named[asked], bounds.models()
    if not model or (may and not may[asked]) then return refuse_unknown(models_for(address), asked) end
    ngx.print(entry(model, remembering()))
end

models.in_json, models.in_form, models.choose = in_json, in_form, choose -- For access_log.lua, and for tests.
-- For usage.lua, which looks at bodies in the same way.
models.after_space, models.members, models.unescaped = after_space, members, unescaped
models.is_form_type = is_form_type
models.with_body, models.rewrite, models.of_request = with_body, rewrite, model_of_request

return models
