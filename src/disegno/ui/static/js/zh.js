// The page in Chinese. A test holds that every English text of the page is here.

export const ZH = {};
