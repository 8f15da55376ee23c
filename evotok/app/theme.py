"""How the page looks: one quiet theme, and the few rules that Gradio's own do not cover."""

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
# Gradio has no option for: pictures of 64 px at the size of their frame, galleries as high as their pictures, and no
# button that sends a visitor's pictures to another site.
CSS = """
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
footer { display: none !important; }
#title h1 { font-size: 1.7rem; letter-spacing: -.02em; margin: .4rem 0 .1rem; }
#title p { color: var(--body-text-color-subdued); margin: 0 0 .2rem; }
.hint p, .hint { color: var(--body-text-color-subdued); font-size: .92rem; }
.status { display: flex; flex-wrap: wrap; align-items: center; gap: .8rem; }
.status { min-height: 1.6rem; font-variant-numeric: tabular-nums; }
.status .bar { flex: 1; min-width: 6rem; height: .4rem; border-radius: 1rem; overflow: hidden; }
.status .bar { background: var(--neutral-200); }
.status .bar i { display: block; height: 100%; background: var(--primary-600); transition: width .2s; }
.status span { color: var(--body-text-color-subdued); font-size: .9rem; }
.buttons { justify-content: flex-end; }
.buttons button, #draw-stop { border: 1px solid var(--neutral-300) !important; }
.grid-wrap { height: auto !important; min-height: 0 !important; max-height: none !important; }
#source img, #other img, #decoded img { width: 100%; height: 100%; object-fit: contain; }
#chat-examples img { width: 56px !important; height: 56px !important; }
[aria-label="Share"], [title="Share"] { display: none !important; }
@media (max-width: 640px) {
  .gradio-container main { padding: .75rem !important; }
  #title h1 { font-size: 1.35rem; }
  #maps .grid-container { grid-template-columns: repeat(4, 1fr) !important; }
}
"""
