-- What a frontend asks of a request beyond nginx's own directives: whose its key is, whose history it may see, and
-- which MCP servers it names.
--
-- Keys, for a service with `frontend.auth.keys_file`: `directory` holds one symbolic link for each key: its name is the
-- key's SHA-256, what it points to is the key's name, and what bounds it (bounds.lua). So a key is looked up with one readlink(2), a new one counts from the moment its link is there, and a revoked one
-- does not from the moment it is gone. Nothing is compared with a secret: the time it takes tells of a hash alone.

local ffi = require "ffi"
local bounds = require "bounds"
local C = ffi.C

ffi.cdef [[
unsigned char *SHA256(const unsigned char *data, size_t size, unsigned char *digest);
unsigned char *ngx_hex_dump(unsigned char *target, const unsigned char *data, size_t size);
]]

local LONGEST_KEY = 4096
local digest, hex = ffi.new("unsigned char[32]"), ffi.new("unsigned char[64]")

local frontend = {}

local function sent()
    local var = ngx.var
    local text = var.http_authorization
    -- As most clients write it: LuaJIT compiles no patterns.
    local bearer = text and #text > 7 and string.sub(text, 1, 7) == "Bearer " and not string.find(text, " ", 8, true)
        and string.sub(text, 8) or string.match(text or "", "^[Bb][Ee][Aa][Rr][Ee][Rr] +(%S+) *$")
    return bearer or var.http_x_api_key or var.http_api_key
end

local function sha256(text)
    C.SHA256(text, #text, digest)
    C.ngx_hex_dump(hex, digest, 32)
    return ffi.string(hex, 64)
end

-- The name of the key that was sent to a service's address, or an empty text. What bounds the key judges the request.
function frontend.name_of_key(directory, service)
    local key = sent()
    if not key or #key > LONGEST_KEY then return "" end
    local path = directory .. "/" .. sha256(key)
    local text = bounds.link(path)
    if not text then return "" end
    local owner = bounds.read(text)
    if owner.expires and owner.expires <= bounds.now() then return "" end
    bounds.note_use(path)
    if owner.is_bounded then bounds.judge(owner, directory, service) end
    return owner.name
end

-- Who a client is to a router that keeps what clients store apart, where another server knows the keys: the hash of
-- what was shown to it, since that server says yes or no and no name.
function frontend.tenant_of_credentials()
    local var = ngx.var
    local shown = table.concat({
        var.http_authorization or "", var.http_x_api_key or "", var.http_api_key or "", var.http_cookie or ""
    }, "\n")
    return shown == "\n\n\n" and "" or string.sub(sha256(shown), 1, 32)
end

-- Answers of another server, which knows the keys. They are kept in memory that all workers share, by the hash of all
-- that the server is told of a request: no credential is there. A yes is the time when it was given; a no as well, with
-- its status as the entry's flags. A clock that is set back makes an answer unknown, and none older.

local LONGEST_NO_S = 1
-- How long a server that failed counts as away: what it let in need not wait for it again.
local AWAY_S = 1

-- Where another server is asked, and what it is told of a request; `headers` are those that it gets from the client. But
-- for the request's name: with that no answer would be kept.
local function asked_of(url, headers)
    local var = ngx.var
    local told = {url, var.request_method, var.request_uri, var.http_host or "", var.scheme, var.remote_addr}
    for _, header in ipairs(headers) do told[#told + 1] = var[header] or "" end
    -- No value of these has a line's end in it.
    local text = table.concat(told, "\n")
    C.SHA256(text, #text, digest)
    return ffi.string(digest, 32)
end

local function is_within(at, seconds)
    local age = at and ngx.now() - at
    return age and age >= 0 and age < seconds
end

-- Answers the question with what the server said before, or lets it be asked.
function frontend.recall(url, keep_s, stale_s, headers)
    local let_in, refused = ngx.shared.gateway_let_in, ngx.shared.gateway_refused
    local key = asked_of(url, headers)
    local at = let_in:get(key)
    if is_within(at, keep_s) or (is_within(at, stale_s) and is_within(let_in:get(url), AWAY_S)) then
        return ngx.exit(204)
    end
    local refused_at, status = refused:get(key)
    if is_within(refused_at, math.min(keep_s, LONGEST_NO_S)) then return ngx.exit(status) end
    ngx.ctx.asked = key
end

-- Keeps what the server says, or turns what it does not say into what it said before.
function frontend.keep(url, keep_s, stale_s)
    local key, status = ngx.ctx.asked, ngx.status
    if not key then return end
    local let_in, refused = ngx.shared.gateway_let_in, ngx.shared.gateway_refused
    if status >= 200 and status < 300 then
        let_in:set(key, ngx.now(), math.max(keep_s, stale_s))
    elseif status == 401 or status == 403 then
        let_in:delete(key)
        if keep_s > 0 then refused:set(key, ngx.now(), math.min(keep_s, LONGEST_NO_S), status) end
    elseif status >= 500 and stale_s > 0 then
        let_in:set(url, ngx.now(), AWAY_S)
        if is_within(let_in:get(key), stale_s) then ngx.status = 204 end
    end
end

-- MCP servers. A router connects to the `server_url` of a tool from this machine, so a client could have it ask a
-- bridge, or whatever else listens here or near by.

local ASKS_SERVERS = "^/v1/(?:responses|interactions)/?$"
-- One string of JSON from a place outside of strings, and the colon that makes it a key. In JSON a quote outside of a
-- string begins one, so going from one to the next never loses the place.
local STRING = [["((?:[^"\\]++|\\.)*+)"(\s*+:)?]]
local ESCAPES = {b = "\b", f = "\f", n = "\n", r = "\r", t = "\t"}
local PRIVATE_NAMES = {
    "localhost", "local", "internal", "intranet", "private", "corp", "home", "lan", "localdomain", "arpa"
}

local function unescaped(text)
    return (string.gsub(text, "\\(.)(%x?%x?%x?%x?)", function(letter, digits)
        if letter ~= "u" or #digits < 4 then return (ESCAPES[letter] or letter) .. digits end
        local code = tonumber(digits, 16)
        return code < 128 and string.char(code) or "?"
    end))
end

-- Whether this is an IPv4 address of the Internet in its usual spelling. What is neither that nor a name (127.1,
-- 0x7f.1, 2130706433, IPv6) is nobody's honest way to name a server: it is refused, not judged.
local function is_public_ip(host)
    local a, b, c, d = string.match(host, "^(%d+)%.(%d+)%.(%d+)%.(%d+)$")
    if not a or string.find("." .. host, ".0%d") then return false end
    a, b, c, d = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
    if a > 223 or b > 255 or c > 255 or d > 255 then return false end
    return not (a == 0 or a == 10 or a == 127 or (a == 100 and b >= 64 and b <= 127) or (a == 169 and b == 254)
        or (a == 172 and b >= 16 and b <= 31) or (a == 192 and (b == 168 or b == 0 or (b == 88 and c == 99)))
        or (a == 198 and (b == 18 or b == 19 or (b == 51 and c == 100))) or (a == 203 and b == 0 and c == 113))
end

local function is_public_name(host)
    local last = string.match(host, "%.([a-z][a-z0-9-]*)$")
    if not last or not string.find(host, "^[a-z0-9-][a-z0-9.-]*$") then return false end
    for _, name in ipairs(PRIVATE_NAMES) do
        if last == name then return false end
    end
    return true
end

local function host_of(url)
    local authority = string.match(url, "^[Hh][Tt][Tt][Pp][Ss]?://([^/?#\\]+)")
    if not authority or string.find(authority, "@", 1, true) then return nil end
    local host = string.lower((string.gsub(authority, ":%d*$", "")))
    return (string.gsub(host, "%.$", ""))
end

local function is_allowed(host, allowed)
    for _, name in ipairs(allowed) do
        if name == "public" and (is_public_ip(host) or is_public_name(host)) then return true end
        if name == host then return true end
        if string.sub(name, 1, 2) == "*." and string.sub(host, -#name + 1) == string.sub(name, 2) then return true end
    end
    return false
end

local function body_of_request()
    ngx.req.read_body()
    local body = ngx.req.get_body_data()
    local path = not body and ngx.req.get_body_file()
    if not path then return body or "" end
    local file = assert(io.open(path, "rb"))
    body = file:read("*a")
    file:close()
    return body
end

-- The first MCP server in a body that may not be asked, or nil.
function frontend.refused_server(body, allowed)
    -- Most requests name none; a key may be spelt with escapes, which plain letters never need.
    if not string.find(body, "server_url", 1, true) and not string.find(body, "\\u00[2-7]") then return nil end
    local context = {pos = 1}
    while true do
        local found, reason = ngx.re.match(body, STRING, "jos", context)
        if reason then return "a body that cannot be read" end
        if not found then return nil end
        if found[2] and unescaped(found[1]) == "server_url" then
            local value = ngx.re.match(body, [[\G\s*+"((?:[^"\\]++|\\.)*+)"]], "jos", {pos = context.pos})
            if value then
                local url = unescaped(value[1])
                local host = host_of(string.match(url, "^%s*(.-)%s*$"))
                if not host or not is_allowed(host, allowed) then return host or "an address that is none" end
            end
        end
    end
end

-- Ends the request with `status` if it names an MCP server that is not among those allowed.
function frontend.check_servers(allowed, status)
    if ngx.req.get_method() ~= "POST" or not ngx.re.find(ngx.var.uri, ASKS_SERVERS, "jo") then return end
    local encoding = ngx.var.http_content_encoding
    if (encoding and string.lower(encoding) ~= "identity") or frontend.refused_server(body_of_request(), allowed) then
        return ngx.exit(status)
    end
end

return frontend
