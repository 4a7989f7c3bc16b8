#include "client/api.h"

#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <filesystem>

namespace lamina::api {

namespace json = boost::json;

namespace {

constexpr std::string_view kHex = "0123456789ABCDEF";

[[noreturn]] void usage(const std::string& message) {
    throw FailureError({"usage", message});
}

int hex_value(char digit) {
    if (digit >= '0' && digit <= '9') return digit - '0';
    if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
    if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
    usage("a percent escape in the request has no two hex digits");
}

std::string environment(const char* name) {
    const char* const value = std::getenv(name);
    return value ? value : "";
}

std::string own_folder() {
    std::error_code error;
    return std::filesystem::read_symlink("/proc/self/exe", error).parent_path().string();
}

/// What JSON writes as a whole number is signed where it can be; lists of requests are lists of texts.
bool is_of_type(const json::value& given, const json::value& wanted) {
    if (wanted.is_uint64()) return given.is_uint64() || (given.is_int64() && given.get_int64() >= 0);
    if (given.kind() != wanted.kind()) return false;
    if (!given.is_array()) return true;
    return std::ranges::all_of(given.get_array(), [](const json::value& item) { return item.is_string(); });
}

json::object merged_object(const json::object& given, const json::object& defaults) {
    json::object merged = defaults;
    for (const auto& member : given) {
        json::value* const known = merged.if_contains(member.key());
        const std::string name(member.key());
        if (!known) usage("the request has an unknown member \"" + name + "\"");
        if (!is_of_type(member.value(), *known)) usage("the request's member \"" + name + "\" has the wrong type");
        *known = known->is_object() ? json::value(merged_object(member.value().as_object(), known->as_object()))
                                    : member.value();
    }
    return merged;
}

}  // namespace

json::value merged_request(std::string_view text, const json::value& defaults) {
    json::error_code error;
    const json::value given = json::parse(text.empty() ? std::string_view("{}") : text, error);
    if (error || !given.is_object()) usage("the request's body is not a JSON object");
    return merged_object(given.as_object(), defaults.as_object());
}

json::value parse_reply_value(std::string_view text) {
    json::error_code error;
    json::value value = json::parse(text, error);
    if (error) bad_reply("not JSON");
    return value;
}

void bad_reply(std::string_view why) {
    throw FailureError({"connection", "the daemon's reply is not understood: " + std::string(why) +
                                          "; client and daemon may be of different versions: lamina daemon stop"});
}

std::string percent_encode(std::string_view text) {
    std::string out;
    for (const char character : text) {
        const auto byte = static_cast<unsigned char>(character);
        const bool is_plain = std::isalnum(byte) || std::string_view("-._~/").find(character) != std::string_view::npos;
        if (is_plain) {
            out += character;
        } else {
            out += {'%', kHex[byte >> 4], kHex[byte & 15]};
        }
    }
    return out;
}

std::string percent_decode(std::string_view text) {
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            out += text[i];
            continue;
        }
        if (i + 2 >= text.size()) usage("a percent escape in the request has no two hex digits");
        out += static_cast<char>(hex_value(text[i + 1]) << 4 | hex_value(text[i + 2]));
        i += 2;
    }
    return out;
}

Places default_places(const std::string& store_option, const std::string& socket_option) {
    Places places;
    const bool is_root = ::geteuid() == 0;
    std::string data = environment("XDG_DATA_HOME");
    if (data.empty()) data = environment("HOME") + "/.local/share";
    std::string runtime = environment("XDG_RUNTIME_DIR");
    if (runtime.empty()) runtime = "/tmp/lamina-" + std::to_string(::geteuid());
    places.store = is_root ? "/var/lib/lamina" : data + "/lamina";
    places.socket = is_root ? "/run/lamina/lamina.sock" : runtime + "/lamina/lamina.sock";
    const std::string store = store_option.empty() ? environment("LAMINA_STORE") : store_option;
    if (!store.empty()) {
        places.store = std::filesystem::absolute(store).lexically_normal().string();
        while (places.store.size() > 1 && places.store.back() == '/') places.store.pop_back();
        places.socket = places.store + "/lamina.sock";
    }
    const std::string socket = socket_option.empty() ? environment("LAMINA_SOCKET") : socket_option;
    if (!socket.empty()) places.socket = std::filesystem::absolute(socket).lexically_normal().string();
    return places;
}

void check_socket_path(const std::string& path) {
    const std::size_t limit = sizeof(sockaddr_un{}.sun_path) - 1;
    if (path.size() <= limit) return;
    usage("socket path " + path + ": " + std::to_string(path.size()) + " bytes, the kernel takes at most " +
          std::to_string(limit) + "; name a shorter one with --socket");
}

std::uint64_t parse_size(std::string_view text) {
    constexpr std::string_view kUnits = "KMGT";
    constexpr std::uint64_t kEnd = std::uint64_t{1} << 62;
    std::uint64_t number = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
    const std::string_view unit = text.substr(static_cast<std::size_t>(parsed.ptr - text.data()));
    const std::size_t place = unit.empty() ? 0 : kUnits.find(unit[0]) + 1;
    const bool is_unit = unit.empty() || (unit.size() == 1 && place != 0);
    if (parsed.ec != std::errc() || !is_unit || number > (kEnd - 1) >> (10 * place))
        usage("size \"" + std::string(text) + "\": a number, with K, M, G or T");
    return number << (10 * place);
}

std::string companion_program(std::string_view name, std::string_view build_folder) {
    std::string variable = std::string(name);
    std::transform(variable.begin(), variable.end(), variable.begin(),
                   [](unsigned char character) { return character == '-' ? '_' : std::toupper(character); });
    if (!variable.starts_with("LAMINA")) variable = "LAMINA_" + variable;
    if (const std::string chosen = environment(variable.c_str()); !chosen.empty()) return chosen;
    const std::string own = own_folder();
    const std::array candidates{own + "/" + std::string(name),
                                own + "/../" + std::string(build_folder) + "/" + std::string(name),
                                own + "/../libexec/lamina/" + std::string(name)};
    for (const std::string& candidate : candidates) {
        if (::access(candidate.c_str(), X_OK) == 0) return std::filesystem::path(candidate).lexically_normal().string();
    }
    return std::string(name);
}

}  // namespace lamina::api
