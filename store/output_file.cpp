#include "store/output_file.h"

#include "store/error.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

namespace lamina::store {

namespace {

constexpr std::size_t kBufferBytes = 256 * 1024;
constexpr std::size_t kTarBlock = 512;
constexpr std::uint64_t kMaxOctalSize = 077777777777;

// umask(2) can only be asked by setting it, which other threads would notice.
mode_t current_umask() {
    constexpr std::string_view key = "\nUmask:\t";
    std::array<std::byte, 4096> buffer;
    const UniqueFd fd = open_read("/proc/self/status");
    const std::size_t size = read_some(fd.get(), 0, buffer, "/proc/self/status");
    const std::string_view text(reinterpret_cast<const char*>(buffer.data()), size);
    const std::size_t at = text.find(key);
    unsigned mask = 022;
    if (at != std::string_view::npos) {
        std::from_chars(text.data() + at + key.size(), text.data() + text.size(), mask, 8);
    }
    return static_cast<mode_t>(mask);
}

std::string temporary_path(const std::string& folder) {
    static std::atomic<unsigned> counter{0};
    return folder + "/" + std::string(kOutputPrefix) + std::to_string(::getpid()) + "-" + std::to_string(++counter) +
           ".tmp";
}

void put_octal(std::span<char> field, std::uint64_t value) {
    for (std::size_t i = field.size() - 1; i-- > 0; value /= 8) field[i] = static_cast<char>('0' + value % 8);
}

// Octal, or base-256 (GNU) for what is 8 GiB and more.
void put_size(std::span<char> field, std::uint64_t value) {
    if (value <= kMaxOctalSize) return put_octal(field, value);
    for (std::size_t i = field.size(); i-- > 1; value /= 256) field[i] = static_cast<char>(value % 256);
    field[0] = static_cast<char>(0x80);
}

std::array<char, kTarBlock> member_header(std::string_view name, std::uint64_t size_bytes, bool is_folder) {
    std::array<char, kTarBlock> block{};
    const std::span<char> bytes(block);
    if (name.size() > 99) throw Error(Errc::internal, "archive member name is too long: " + std::string(name));
    std::copy(name.begin(), name.end(), block.begin());
    put_octal(bytes.subspan(100, 8), is_folder ? 0755 : 0644);
    put_octal(bytes.subspan(108, 8), 0);
    put_octal(bytes.subspan(116, 8), 0);
    put_size(bytes.subspan(124, 12), size_bytes);
    put_octal(bytes.subspan(136, 12), 0);
    block[156] = is_folder ? '5' : '0';
    std::memcpy(block.data() + 257, "ustar\00000", 8);
    std::fill_n(block.begin() + 148, 8, ' ');
    unsigned sum = 0;
    for (const char c : block) sum += static_cast<unsigned char>(c);
    put_octal(bytes.subspan(148, 7), sum);
    return block;
}

}  // namespace

OutputFile::OutputFile(const std::string& folder) : file_(File::create(temporary_path(folder))), is_temporary_(true) {
    buffer_.reserve(kBufferBytes);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : file_(std::move(other.file_)),
      buffer_(std::move(other.buffer_)),
      is_temporary_(std::exchange(other.is_temporary_, false)) {}

OutputFile::~OutputFile() {
    if (is_temporary_) ::unlink(file_.path().c_str());
}

void OutputFile::write(std::span<const std::byte> data) {
    if (buffer_.size() + data.size() > kBufferBytes) flush();
    if (data.size() >= kBufferBytes) return file_.append(data);
    buffer_.insert(buffer_.end(), data.begin(), data.end());
}

void OutputFile::flush() {
    if (!buffer_.empty()) file_.append(buffer_);
    buffer_.clear();
}

void OutputFile::write_at(std::uint64_t offset_bytes, std::span<const std::byte> data) {
    flush();
    file_.write_at(offset_bytes, data);
}

void OutputFile::publish(const std::string& target) {
    flush();
    if (::fchmod(file_.fd(), 0666 & ~current_umask()) != 0) throw_errno(errno, "chmod " + file_.path());
    file_.publish(target);
    is_temporary_ = false;
}

bool OutputFile::is_renamed() const {
    return !is_temporary_ || !exists(file_.path());
}

void make_output_folders(const std::string& path, std::vector<std::string>& made) {
    std::vector<std::string> missing;
    for (std::string folder = path; !exists(folder); folder = folder_of(folder)) missing.push_back(folder);
    made.insert(made.end(), missing.rbegin(), missing.rend());
    make_folders(path);
    const mode_t mode = 0777 & ~current_umask();
    for (const std::string& folder : missing) {
        if (::chmod(folder.c_str(), mode) != 0) throw_errno(errno, "chmod " + folder);
    }
}

void OutputArchive::add_folder(std::string_view name) {
    const auto header = member_header(std::string(name) + "/", 0, true);
    file_.write(std::as_bytes(std::span(header)));
}

void OutputArchive::add(std::string_view name, std::span<const std::byte> body) {
    begin_member();
    write(body);
    end_member(name);
}

void OutputArchive::begin_member() {
    header_offset_ = file_.size_bytes();
    file_.write(std::array<std::byte, kTarBlock>{});
}

void OutputArchive::write(std::span<const std::byte> data) {
    file_.write(data);
}

void OutputArchive::end_member(std::string_view name) {
    const std::uint64_t size_bytes = file_.size_bytes() - header_offset_ - kTarBlock;
    constexpr std::array<std::byte, kTarBlock> zeros{};
    file_.write(std::span(zeros).first((kTarBlock - size_bytes % kTarBlock) % kTarBlock));
    const auto header = member_header(name, size_bytes, false);
    file_.write_at(header_offset_, std::as_bytes(std::span(header)));
}

void OutputArchive::publish(const std::string& target) {
    file_.write(std::array<std::byte, 2 * kTarBlock>{});
    try {
        file_.publish(target);
    } catch (...) {  // The folder could not be synced: what may not last must not be there now.
        if (file_.is_renamed()) ::unlink(target.c_str());
        throw;
    }
}

}  // namespace lamina::store
