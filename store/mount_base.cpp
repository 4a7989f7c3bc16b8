#include "store/error.h"
#include "store/file.h"
#include "store/file_ops.h"
#include "store/printable.h"
#include "store/read_view.h"

#include <sys/stat.h>

#include <cerrno>

// The base of a mount is a few lines of text (FORMAT.md, "Mount base"): always the same keys in the same order, and
// last the digest of all that stands above it. Text of people (image name, mount point) is escaped so that a line stays
// a line.

namespace lamina::store {

namespace {

constexpr std::string_view kFirstLine = "lamina-mount-base 1";
constexpr std::uint64_t kMaxBytes = 256 * 1024;
constexpr std::size_t kMaxLayers = 500;
constexpr std::string_view kHexDigits = "0123456789ABCDEF";

bool is_escaped(char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte < 0x20 || byte == 0x7f || c == '%';
}

std::string escaped(std::string_view text) {
    std::string out;
    for (const char c : text) {
        if (is_escaped(c)) {
            const auto byte = static_cast<unsigned char>(c);
            out += {'%', kHexDigits[byte >> 4], kHexDigits[byte & 15]};
        } else {
            out += c;
        }
    }
    return out;
}

// Takes the lines of a base one by one, each of which must be the one that is asked for.
class Lines {
public:
    Lines(std::string_view text, const std::string& path) : left_(text), path_(path) {}

    [[noreturn]] void fail(const std::string& why) const { throw Error(Errc::malformed, path_ + ": " + why); }
    bool next_is(std::string_view key) const { return left_.starts_with(std::string(key) + " "); }
    std::string_view value(std::string_view key) {
        if (!next_is(key)) fail("expected a line \"" + std::string(key) + " ...\"");
        return line().substr(key.size() + 1);
    }
    std::string_view line() {
        const auto end = left_.find('\n');
        if (end == std::string_view::npos) fail("ends within a line");
        const std::string_view out = left_.substr(0, end);
        left_.remove_prefix(end + 1);
        return out;
    }
    std::string text(std::string_view key) {
        const std::string_view raw = value(key);
        std::string out;
        for (std::size_t i = 0; i < raw.size(); ++i) {
            if (raw[i] != '%') {
                if (is_escaped(raw[i])) fail("a control character");
                out += raw[i];
                continue;
            }
            const auto high = i + 2 < raw.size() ? kHexDigits.find(raw[i + 1]) : std::string_view::npos;
            const auto low = i + 2 < raw.size() ? kHexDigits.find(raw[i + 2]) : std::string_view::npos;
            const bool is_hex = high != std::string_view::npos && low != std::string_view::npos;
            const char c = is_hex ? static_cast<char>(high << 4 | low) : 'x';
            if (!is_escaped(c)) fail("a wrong escape");
            out += c;
            i += 2;
        }
        return out;
    }
    Digest digest(std::string_view key) {
        try {
            return Digest::parse(value(key));
        } catch (const Error& error) {  // Says which file.
            throw with_context(error, path_);
        }
    }
    std::string_view left() const { return left_; }

private:
    std::string_view left_;
    const std::string& path_;
};

std::string body_of(const MountBase& base) {
    std::string out(kFirstLine);
    out += "\ntree " + base.tree.digest.text() + "\n";
    for (const DiffId& layer : base.layers) out += "layer " + layer.digest.text() + "\n";
    out += "image " + escaped(base.image) + "\n";
    out += "manifest " + escaped(base.manifest_digest) + "\n";
    out += "config " + escaped(base.config_digest) + "\n";
    out += "mountpoint " + escaped(base.mountpoint) + "\n";
    out += std::string("read-only ") + (base.is_read_only ? "yes" : "no") + "\n";
    return out;
}

std::string path_of(const std::string& mount_folder) {
    return mount_folder + "/base";
}

std::string text_of(const MountBase& base, const std::string& path) {
    if (base.layers.size() > kMaxLayers) throw Error(Errc::malformed, path + ": more than 500 layers");
    std::string text = body_of(base);
    text += "sum " + Digest::of(as_bytes(text)).text() + "\n";
    if (text.size() > kMaxBytes) throw Error(Errc::malformed, path + ": too large");
    return text;
}

void write_synced(const std::string& path, std::string_view text) {
    File file = File::create(path);
    file.append(as_bytes(text));
    file.sync();
}

}  // namespace

MountBase read_mount_base(const std::string& mount_folder) {
    const std::string path = path_of(mount_folder);
    const std::vector<std::byte> data = read_file(path, kMaxBytes);
    const std::string_view text(reinterpret_cast<const char*>(data.data()), data.size());
    Lines lines(text, path);
    const std::string_view first = lines.line();
    if (first != kFirstLine) {
        if (!first.starts_with("lamina-mount-base ")) lines.fail("not the base of a mount");
        throw Error(Errc::unsupported, path + ": a base of another version: " + quote(first));
    }
    MountBase base{.tree = TreeDigest{lines.digest("tree")}};
    while (lines.next_is("layer")) {
        if (base.layers.size() == kMaxLayers) lines.fail("more than 500 layers");
        base.layers.push_back(DiffId{lines.digest("layer")});
    }
    base.image = lines.text("image");
    base.manifest_digest = lines.text("manifest");
    base.config_digest = lines.text("config");
    base.mountpoint = lines.text("mountpoint");
    const std::string_view read_only = lines.value("read-only");
    if (read_only != "yes" && read_only != "no") lines.fail("read-only is neither yes nor no");
    base.is_read_only = read_only == "yes";
    const std::string_view summed = text.substr(0, text.size() - lines.left().size());
    if (lines.digest("sum") != Digest::of(as_bytes(summed))) lines.fail("does not match its checksum");
    if (!lines.left().empty()) lines.fail("something after its checksum");
    return base;
}

void write_mount_base(const std::string& mount_folder, const MountBase& base) {
    const std::string path = path_of(mount_folder);
    write_file_atomically(path, as_bytes(text_of(base, path)));
}

void create_mount_folder(const std::string& mount_folder, const std::string& staged, const MountBase& base,
                         const std::string& name) {
    const std::string text = text_of(base, path_of(mount_folder));
    fault_point("mkdir", staged);
    if (::mkdir(staged.c_str(), 0700) != 0) throw_errno(errno, "mkdir " + staged);
    if (!name.empty()) write_synced(staged + "/name", name);
    write_synced(path_of(staged), text);
    sync_folder(staged);
    rename_durably(staged, mount_folder);
}

}  // namespace lamina::store
