"""Theme of the page, CSS that Gradio has no option for, and a script that names images for screen readers."""

import gradio as gr


FONT = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
THEME = gr.themes.Base(
    primary_hue="indigo",
    neutral_hue="slate",
    radius_size="lg",
    font=FONT,
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
).set(
    body_background_fill="*neutral_50",
    body_text_color_subdued="*neutral_500",
    body_text_color_subdued_dark="*neutral_400",
    input_background_fill="*neutral_50",
    block_background_fill="white",
    block_border_color="*neutral_200",
    block_label_text_weight="500",
    block_title_text_weight="500",
    block_shadow="none",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_text_color="white",
    button_secondary_background_fill="white",
    button_secondary_border_color="*neutral_300",
    slider_color="*primary_600",
)
# Gradio has no option for: images of 64 px at the size of their frame and clear of its label, galleries as high as
# their images, results before settings on a phone, and no button that sends a visitor's images to another site.
CSS = """
.gradio-container { max-width: 1120px !important; width: 100% !important; margin: 0 auto !important; }
footer, [aria-label="Share"], [title="Share"] { display: none !important; }
#title h1 { font-size: 1.7rem; letter-spacing: -.02em; margin: .2rem 0 .1rem; }
#title p { color: var(--body-text-color-subdued); display: inline; }
.hint p, .hint { color: var(--body-text-color-subdued); font-size: .92rem; }
.hint h3 { color: var(--body-text-color); font-size: 1.05rem; margin: .6rem 0 0; }
.hint h3 + p { margin-top: .1rem; }
.status { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem .8rem; }
.status { min-height: 1.6rem; font-variant-numeric: tabular-nums; }
.status .bar { flex: 1; min-width: 8rem; height: .4rem; border-radius: 1rem; overflow: hidden; }
.status .bar { background: var(--neutral-200); }
.status .bar i { display: block; height: 100%; background: var(--primary-600); transition: width .2s; }
.status span { color: var(--body-text-color-subdued); font-size: .9rem; }
.buttons { justify-content: flex-end; }
.buttons button, #generate-stop { border: 1px solid var(--neutral-300) !important; }
.grid-wrap { height: auto !important; min-height: 0 !important; max-height: none !important; }
#transcript .top-panel { display: none; }
#gallery .caption-label { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
#source img, #other img, #decoded img { width: 100%; height: 100%; object-fit: contain; padding: 1.8rem .8rem .8rem; }
#chat-examples img { width: 48px !important; height: 48px !important; }
#inside-examples img, #other-examples img { width: 60px !important; height: 60px !important; }
#inside-examples .gallery, #other-examples .gallery { width: 60px !important; }
#maps .caption-label { font-size: .75rem; padding: 0 .35rem; }
#generate { display: grid; gap: 1rem 1.25rem; grid-template: "prompt result" auto "settings result" 1fr / 1fr 1fr; }
#generate-prompt { grid-area: prompt; }
#generate-result { grid-area: result; }
#generate-settings { grid-area: settings; }
@media (max-width: 640px) {
  #title h1 { font-size: 1.4rem; }
  #title p + p { display: none; }
  #transcript { height: 42vh !important; }
  #generate { grid-template: "prompt" "result" "settings" / 1fr; }
  #generate-examples .gallery-item:nth-child(n+5) { display: none; }
  #maps .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
}
"""

# Most images of Gradio, and its buttons with only an image, have no name for screen readers.
HEAD = """
<script>
const NAMES = {
  source: "Input image", other: "Other input image", decoded: "Image decoded from its codes",
  gallery: "Generated image", maps: "Codes of one level", swapped: "Image with swapped codes",
  transcript: "Image of the conversation",
};
function nameImages() {
  for (const image of document.querySelectorAll("img")) {
    const block = image.closest(Object.keys(NAMES).map(id => "#" + id).join());
    const file = decodeURIComponent(image.src.split("/").pop()).replace(/\\.\\w+$/, "");
    if (!image.alt) image.alt = block ? NAMES[block.id] : file;
    const button = image.closest("button");
    if (button && !button.innerText.trim() && !button.ariaLabel) button.ariaLabel = image.alt;
  }
}
function watchImages() {
  let due = 0;
  nameImages();
  new MutationObserver(() => { cancelAnimationFrame(due); due = requestAnimationFrame(nameImages); })
    .observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["src", "alt"] });
}
if (document.body) watchImages();
else addEventListener("DOMContentLoaded", watchImages);
</script>
"""
