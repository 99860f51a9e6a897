// What a person would see to be wrong with the page's charts, left for the test on the body.
(() => {
  const wrong = [];
  for (const details of document.querySelectorAll('details')) details.open = true;
  let charts = 0;
  for (const figure of document.querySelectorAll('figure')) {
    const picture = figure.querySelector('svg').getBoundingClientRect();
    if (picture.width < 120 || picture.height < 60) {
      wrong.push(`${figure.id} is ${picture.width} by ${picture.height}`);
      continue;
    }
    charts += 1;
    const words = [...figure.querySelectorAll('svg text')]
      .map(text => ({ says: text.textContent.trim(), box: text.getBoundingClientRect() }))
      .filter(({ says }) => says);
    for (const [place, { says, box }] of words.entries()) {
      // A text's box is as high as its line, which is a little more than its letters.
      const slack = 0.25 * Math.min(box.width, box.height);
      const isOn = other => Math.min(box.right, other.right) - Math.max(box.left, other.left) > slack
        && Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top) > slack;
      for (const other of words.slice(place + 1)) {
        if (isOn(other.box)) wrong.push(`${figure.id}: “${says}” is on “${other.says}”`);
      }
      if (box.left < picture.left - slack || box.right > picture.right + slack
          || box.top < picture.top - slack || box.bottom > picture.bottom + slack) {
        wrong.push(`${figure.id}: “${says}” is cut off`);
      }
    }
  }
  const room = document.documentElement;
  if (room.scrollWidth > room.clientWidth) {
    wrong.push(`the page is ${room.scrollWidth} wide in a window of ${room.clientWidth}`);
  }
  Object.assign(document.body.dataset, {
    charts,
    paper: getComputedStyle(document.body).backgroundColor,
    window: innerWidth,
    wrong: wrong.join('\n'),
  });
})();
