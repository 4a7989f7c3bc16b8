#pragma once

#include <string>
#include <vector>

namespace lamina::test {

/// The same layers as the kernel stacks them: words of layer_text.h are unpacked into one folder per layer, whiteouts
/// and opaque marks in overlayfs' own form, and the folders are mounted as overlayfs. For comparing; needs root.
class OverlayStack {
public:
    explicit OverlayStack(const std::string& folder);
    ~OverlayStack();
    OverlayStack(const OverlayStack&) = delete;
    OverlayStack& operator=(const OverlayStack&) = delete;

    /// False when this process may not mount overlayfs here: then there is nothing to compare with.
    static bool is_possible();

    void begin_layer();
    /// Takes an entry if an unpacker could; false: left out (below a file, or a hard link to nothing in this layer).
    bool add(const std::string& word);
    /// False when the layer must be refused as malformed: it has entries below what is no directory.
    bool finish_layer();
    std::string text() const;  ///< As text_of() shows a tree. Links are counted within the stack.

private:
    std::string own(const std::string& path) const { return layer_ + "/" + path; }
    bool is_made(const std::string& path);
    bool has_mark(const std::string& parent, const std::string& name) const;
    bool is_removed(const std::string& path) const;
    bool apply_mark(const std::string& parent, const std::string& name);
    bool apply_whiteout(const std::string& parent, const std::string& name);
    bool apply_opaque(const std::string& path);
    bool describe_made(const std::string& path);
    void mount_stack();

    std::string folder_;
    std::string layer_;
    std::vector<std::string> layers_;  // Bottom first.
    std::vector<std::string> marks_;   // Whiteouts and opaque marks of this layer.
    std::vector<std::string> made_;    // Directories that no entry of this layer describes (yet).
    int layer_count_ = 0;
    bool is_mounted_ = false;
};

}  // namespace lamina::test
