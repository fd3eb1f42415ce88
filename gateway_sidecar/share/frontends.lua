-- What a frontend asks of a request beyond nginx's own directives: whose its key is, whose history it may see, and
-- which MCP servers it names.
--
-- Keys, for a service with `frontend.auth.keys_file`: `directory` holds one symbolic link for each key: its name is the
-- key's SHA-256, what it points to is the key's name, and where the key expires `:` and the seconds since 1970.
-- So a key is looked up with one readlink(2), a new one counts from the moment its link is there, and a revoked one
-- does not from the moment it is gone. Nothing is compared with a secret: the time it takes tells of a hash alone.

local ffi = require "ffi"
local C = ffi.C

ffi.cdef [[
unsigned char *SHA256(const unsigned char *data, size_t size, unsigned char *digest);
long readlink(const char *path, char *target, size_t size);
]]

local LONGEST_KEY = 4096
local LONGEST_NAME = 255
local digest = ffi.new("unsigned char[32]")
local target = ffi.new("char[?]", LONGEST_NAME)
local digits, hex = {}, {}
for byte = 0, 255 do digits[byte] = string.format("%02x", byte) end

local frontend = {}

local function sent()
    local var = ngx.var
    local bearer = string.match(var.http_authorization or "", "^[Bb][Ee][Aa][Rr][Ee][Rr] +(%S+) *$")
    return bearer or var.http_x_api_key or var.http_api_key
end

local function sha256(text)
    C.SHA256(text, #text, digest)
    for at = 0, 31 do hex[at + 1] = digits[digest[at]] end
    return table.concat(hex, "", 1, 32)
end

-- The name of the key that was sent, or an empty text.
function frontend.name_of_key(directory)
    local key = sent()
    if not key or #key > LONGEST_KEY then return "" end
    local size = tonumber(C.readlink(directory .. "/" .. sha256(key), target, LONGEST_NAME))
    if size <= 0 then return "" end
    local name, expires = string.match(ffi.string(target, size), "^([^:]*):?(%d*)$")
    if not name or (expires ~= "" and tonumber(expires) <= ngx.time()) then return "" end
    return name
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
